"""Options that verbs share, and the session that they make."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from modelpack.cli.output import Outcome, show
from modelpack.oci.connect import ConnectSettings
from modelpack.spec.progress import QUIET, Reporter
from modelpack.state.database import Database, default_path
from modelpack.state.digests import DigestCache, NoDigestCache
from modelpack.state.uploads import DatabaseUploadLog
from modelpack.verbs.session import Session

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="PATTERN", help="Only these files; a .gitignore pattern."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Not these files; a .gitignore pattern."),
]
Platform = Annotated[
    str,
    typer.Option("--platform", metavar="OS/ARCH", help="Entry of an image index to read."),
]

_PlainHttp = Annotated[
    bool,
    typer.Option(
        "--plain-http", help="Speak HTTP without TLS. Loopback registries do so by default."
    ),
]
_Insecure = Annotated[
    bool, typer.Option("--insecure", help="Do not verify the registry's certificate.")
]
_CaFile = Annotated[
    Path | None,
    typer.Option("--ca-file", exists=True, dir_okay=False, help="PEM file of extra authorities."),
]
_ClientCert = Annotated[
    Path | None,
    typer.Option("--client-cert", exists=True, dir_okay=False, help="PEM certificate for mTLS."),
]
_ClientKey = Annotated[
    Path | None,
    typer.Option("--client-key", exists=True, dir_okay=False, help="Its key, if in another file."),
]
_Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, max=64, help="Parallel transfers."),
]
_NoDigestCache = Annotated[
    bool,
    typer.Option(
        "--no-digest-cache", help="Read every file again, even those that look unchanged."
    ),
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]

_SHARED: Final[dict[str, tuple[object, object]]] = {
    "as_json": (_Json, False),
    "plain_http": (_PlainHttp, False),
    "insecure": (_Insecure, False),
    "ca_file": (_CaFile, None),
    "client_cert": (_ClientCert, None),
    "client_key": (_ClientKey, None),
    "jobs": (_Jobs, None),
    "no_digest_cache": (_NoDigestCache, False),
    "quiet": (_Quiet, False),
}


def with_session(command: Callable[..., Outcome]) -> Callable[..., None]:
    """Give a command --json and the shared options, and a session made of them as `session`.

    What it returns is printed after the session, and with it the progress, has ended.
    """
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "session"]
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
        )
        for name, (annotation, default) in _SHARED.items()
    ]

    @wraps(command)
    def run(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in _SHARED}
        with _session(given) as session:
            outcome = command(session=session, **arguments)
        show(outcome, as_json=given["as_json"])
        if outcome.code:
            raise typer.Exit(outcome.code)

    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature([*keyword_only, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*keyword_only, *shared)}
    return run


@contextmanager
def _session(given: dict[str, Any]) -> Iterator[Session]:
    database = Database(default_path())
    with ExitStack() as stack:
        stack.callback(database.close)
        reporter: Reporter = QUIET
        if sys.stderr.isatty() and not (given["quiet"] or given["as_json"]):
            from modelpack.cli.progress import Bars  # 0.1 s that only terminals pay

            reporter = stack.enter_context(Bars())
        yield Session(
            connect=ConnectSettings(
                plain_http=given["plain_http"],
                insecure=given["insecure"],
                ca_file=given["ca_file"],
                client_cert=given["client_cert"],
                client_key=given["client_key"],
                uploads=DatabaseUploadLog(database),
            ),
            database=database,
            cache=NoDigestCache() if given["no_digest_cache"] else DigestCache(database),
            jobs=given["jobs"] or default_jobs(),
            reporter=reporter,
        )


def default_jobs() -> int:
    """Two transfers per processor, at least 4 to hide latency, at most 16."""
    return max(4, min(16, 2 * (os.cpu_count() or 1)))
