"""`ls`, `rm`, `login` and `logout`."""

import sys
from typing import Annotated

import typer

from modelpack.cli.options import with_session
from modelpack.cli.output import Outcome, size
from modelpack.spec.reference import Reference
from modelpack.verbs.access import log_in, log_out
from modelpack.verbs.catalog import list_tags, remove
from modelpack.verbs.session import Session


@with_session
def list_command(
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Repository or oci:DIR.")],
    *,
    session: Session,
) -> Outcome:
    """List the tags of a repository, with what each of them names.

    Examples:

      modelpack ls registry.example.com/llm/llama-3-8b

      modelpack ls oci:./layout
    """
    rows = list_tags(Reference.parse(repository), session)
    width = max((len(row.tag) for row in rows), default=0)
    lines = [
        f"{row.tag:<{width}}  {row.digest[:19]:<19}  "
        f"{'?' if row.bytes is None else size(row.bytes):>8}  {row.architecture}".rstrip()
        for row in rows
    ]
    return Outcome({"repository": repository, "tags": rows}, lines or ["no tags"])


@with_session
def remove_command(
    reference: Annotated[str, typer.Argument(metavar="REF", help="Tag or digest to remove.")],
    *,
    session: Session,
) -> Outcome:
    """Remove a tag; with a digest, the manifest and all its tags.

    Registries that cannot remove a tag remove what it names. Layers are freed by the registry's
    own garbage collection.

    Examples:

      modelpack rm registry.example.com/llm/llama-3-8b:v1
    """
    done = remove(Reference.parse(reference), session)
    return Outcome(done, [f"removed {done.reference} ({done.digest})"])


@with_session
def login(
    registry: Annotated[str, typer.Argument(metavar="REGISTRY", help="Host, with port if any.")],
    *,
    session: Session,
    username: Annotated[str, typer.Option("--username", "-u", help="Asked for if not given.")] = "",
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
) -> Outcome:
    """Log in to a registry, and keep the credentials where docker and podman do.

    Examples:

      modelpack login registry.example.com

      echo "$TOKEN" | modelpack login ghcr.io -u USER --password-stdin
    """
    user = username or typer.prompt("Username", err=True)
    if password_stdin:
        password = sys.stdin.read().rstrip("\r\n")
    else:
        password = typer.prompt("Password", hide_input=True, err=True)
    done = log_in(registry, user, password, session)
    return Outcome(done, [f"logged in to {done.registry}; kept in {done.kept_in}"])


@with_session
def logout(
    registry: Annotated[str, typer.Argument(metavar="REGISTRY", help="Host, with port if any.")],
    *,
    session: Session,
) -> Outcome:
    """Forget the credentials of a registry.

    Examples:

      modelpack logout registry.example.com
    """
    known = log_out(registry, session)
    line = f"logged out of {registry}" if known else f"not logged in to {registry}"
    return Outcome({"registry": registry, "was_logged_in": known}, [line])
