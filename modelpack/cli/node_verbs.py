"""`modelpack node`: the cache daemon of this machine, or of another."""

import functools
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from modelpack.cli.output import Outcome, cloned, count, seconds, show, size
from modelpack.spec.errors import InputError, NotFound
from modelpack.verbs.node import SOCKET, Node, credential_for
from modelpack.verbs.node_address import RemoteAddress

app = typer.Typer(
    help="Ask the cache daemon of this node, or of another, or tell it what to do.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_Socket = Annotated[
    Path | None,
    typer.Option("--socket", metavar="PATH", envvar=SOCKET, help="The daemon's socket."),
]
_Url = Annotated[
    str,
    typer.Option("--url", metavar="URL", help="Another node instead: https://HOST:PORT."),
]
_TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with the token that it wants.")
]
_CaFile = Annotated[
    Path | None, typer.Option("--ca-file", help="PEM file of the authority of its certificate.")
]
_ClientCert = Annotated[
    Path | None, typer.Option("--client-cert", help="PEM certificate for mTLS.")
]
_ClientKey = Annotated[
    Path | None, typer.Option("--client-key", help="Its key, if in another file.")
]
_REMOTE: Final = {
    "token_file": _TokenFile, "ca_file": _CaFile, "client_cert": _ClientCert,
    "client_key": _ClientKey,
}  # fmt: skip
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_WARM_SECONDS: Final = 100.0  # what the daemon may be asked to wait for at a time
_Model = Annotated[str, typer.Argument(metavar="MODEL", help="Reference, or the start of a key.")]


def with_node(command: Callable[..., Outcome]) -> Callable[..., int]:
    """Give a command the node, print what it returns."""
    signature = inspect.signature(command)
    own = [p for p in signature.parameters.values() if p.name != "node"]
    named = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter("socket", named, default=None, annotation=_Socket),
        inspect.Parameter("url", named, default="", annotation=_Url),
        *(inspect.Parameter(n, named, default=None, annotation=a) for n, a in _REMOTE.items()),
        inspect.Parameter("as_json", named, default=False, annotation=_Json),
    ]

    @functools.wraps(command)
    def run(*args: object, socket: Path | None, url: str, as_json: bool, **options: Any) -> int:
        files = {name: options.pop(name) for name in _REMOTE}
        node = Node(socket, _address(url, files))
        outcome = command(*args, node=node, **options)
        show(outcome, as_json=as_json)
        return outcome.code

    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own, *more], return_annotation=int
    )
    return run


def _address(url: str, files: dict[str, Path | None]) -> RemoteAddress | None:
    if url:
        return RemoteAddress(url=url, **files)
    for name, given in files.items():
        if given is not None:
            raise InputError(f"--{name.replace('_', '-')} is about another node: it needs --url")
    return None


@app.command("status")
@with_node
def status(*, node: Node) -> Outcome:
    """Say how full the cache is, and what it is doing.

    Examples:

      modelpack node status

      modelpack node status --json
    """
    stats = node.get("/v1/stats")
    space = (
        f"{count(stats['models'], 'model')}, {size(stats['bytes_used'])} used, "
        f"{size(stats['bytes_free'])} of {size(stats['bytes_total'])} free"
    )
    work = (
        f"{count(stats['leases'], 'lease')}, {count(stats['pins'], 'pin')}, "
        f"{stats['fetching']} fetching, {stats['queued']} queued"
    )
    brakes = [word for word in ("draining", "paused") if stats[word]]
    return Outcome(stats, [space, ", ".join([work, *brakes])])


@app.command("ls")
@with_node
def list_models(*, node: Node) -> Outcome:
    """List the models on this node and on their way.

    Examples:

      modelpack node ls
    """
    models = node.get("/v1/models")
    return Outcome({"models": models}, [_line(model) for model in models] or ["no models"])


@app.command("prefetch")
@with_node
def prefetch(
    reference: Annotated[str, typer.Argument(metavar="REF", help="What to bring here.")],
    *,
    include: Annotated[list[str] | None, typer.Option(help="Only files that match.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No files that match.")] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it whatever happens.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is here.")] = False,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Send no credential of yours to the daemon.")
    ] = False,
    node: Node,
) -> Outcome:
    """Bring a model to this node, with your credential for its registry, as pull has it.

    Examples:

      modelpack node prefetch registry.example.com/llm/llama-3-8b:v3 --pin --wait
    """
    body = {"ref": reference, "include": include or [], "exclude": exclude or [], "pin": pin}
    body["credential"] = None if anonymous else credential_for(reference)
    model = node.send("POST", "/v1/models", body)
    if wait:
        *_, model = node.watch(model["key"])
    return Outcome(model, [_line(model)], _code(model))


@app.command("watch")
@with_node
def watch(model: _Model, *, node: Node) -> Outcome:
    """Follow a model until it is here.

    Examples:

      modelpack node watch registry.example.com/llm/llama-3-8b:v3
    """
    *_, found = node.watch(_find(node, model)["key"])
    return Outcome(found, [_line(found)], _code(found))


@app.command("pin")
@with_node
def pin_model(
    model: _Model,
    *,
    hours: Annotated[float, typer.Option(help="How long; 0 for ever.", min=0)] = 0,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    node: Node,
) -> Outcome:
    """Keep a model, whatever else needs the space.

    Examples:

      modelpack node pin registry.example.com/llm/llama-3-8b:v3 --hours 12
    """
    key = _find(node, model)["key"]
    until = time.time() + hours * 3600 if hours else 0
    node.send("PUT", f"/v1/models/{key}/pin", {"until": until, "reason": reason})
    return Outcome({"key": key, "until": until}, [f"pinned {key}"])


@app.command("unpin")
@with_node
def unpin_model(model: _Model, *, node: Node) -> Outcome:
    """Let a model be evicted again.

    Examples:

      modelpack node unpin registry.example.com/llm/llama-3-8b:v3
    """
    key = _find(node, model)["key"]
    node.send("DELETE", f"/v1/models/{key}/pin")
    return Outcome({"key": key}, [f"unpinned {key}"])


@app.command("rm")
@with_node
def remove_model(model: _Model, *, node: Node) -> Outcome:
    """Remove a model that nobody holds, or cancel its fetch.

    Examples:

      modelpack node rm registry.example.com/llm/llama-3-8b:v2
    """
    key = _find(node, model)["key"]
    freed = node.send("DELETE", f"/v1/models/{key}")["bytes_freed"]
    return Outcome({"key": key, "bytes_freed": freed}, [f"removed {key}, {size(freed)} freed"])


@app.command("gc")
@with_node
def collect(*, node: Node) -> Outcome:
    """Remove what nothing needs: files without a model, fetches given up.

    Examples:

      modelpack node gc
    """
    done = node.send("POST", "/v1/gc")
    return Outcome(done, [f"{size(done['bytes_freed'])} freed"])


@app.command("drain")
@with_node
def drain(
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Take new models again.")] = False,
    node: Node,
) -> Outcome:
    """Take no new models; what is under way ends.

    Examples:

      modelpack node drain

      modelpack node drain --undo
    """
    node.send("DELETE" if undo else "POST", "/v1/drain")
    return Outcome({"draining": not undo}, ["taking new models" if undo else "draining"])


@app.command("pause")
@with_node
def pause(
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Begin fetches again.")] = False,
    node: Node,
) -> Outcome:
    """Begin no fetches for now; those under way go on, new ones wait.

    Examples:

      modelpack node pause

      modelpack node pause --undo
    """
    node.send("DELETE" if undo else "POST", "/v1/pause")
    return Outcome({"paused": not undo}, ["fetching" if undo else "paused"])


@app.command("warm")
@with_node
def warm(
    model: _Model,
    *,
    wait: Annotated[
        float, typer.Option(help="How long to wait for it; it goes on afterwards.", min=0)
    ] = 0,
    node: Node,
) -> Outcome:
    """Read a model into the page cache, as far as memory allows.

    Examples:

      modelpack node warm registry.example.com/llm/llama-3-8b:v3 --wait 60
    """
    found = _find(node, model)
    deadline = time.monotonic() + wait
    while True:
        left = max(0.0, deadline - time.monotonic())
        body = {"seconds": min(left, _WARM_SECONDS)}
        warmed = node.send("POST", f"/v1/models/{found['key']}/warm", body)
        if warmed["done"] or left <= _WARM_SECONDS:
            break
    words = f"{size(warmed['bytes_resident'])} of {size(warmed['bytes_total'])} in memory"
    if warmed["short_of_memory"]:
        words += ", no room for more"
    elif not warmed["done"]:
        words += ", still reading"
    code = 5 if wait and not warmed["done"] else 0
    return Outcome({"key": found["key"], **warmed}, [words], code)


@app.command("explain")
@with_node
def explain(model: _Model, *, node: Node) -> Outcome:
    """Say where the bytes of a model came from, who holds it, and what it costs.

    Examples:

      modelpack node explain registry.example.com/llm/llama-3-8b:v3
    """
    found = _find(node, model)
    leases = [one for one in node.get("/v1/leases") if one["key"] == found["key"]]
    lines = [found["reference"], f"  {found['state']}: {size(found['bytes_total'])}"]
    if found["state"] == "ready":
        came = (
            f"  {size(found['bytes_total'])} in {count(found['files'], 'file')}: "
            f"{size(found['bytes_fetched'])} from the registry, "
            f"{size(found['bytes_reused'])} from this disk{cloned(found.get('bytes_cloned', 0))}, "
            f"in {seconds(found['fetch_seconds'])}"
        )
        kept = (
            f"  up to {size(found['bytes_unique'])} would be free without it; "
            f"used {count(found['uses'], 'time')}"
        )
        pinned = ", pinned" if found["pinned"] else ""
        lines = [found["reference"], came, _phases(found), kept + pinned, f"  {found['path']}"]
    lines += [f"  lease {_owner(one)}" for one in leases]
    return Outcome({**found, "held_by": leases}, lines)


def _find(node: Node, model: str) -> dict[str, Any]:
    """Return the one model that a reference or the start of a key names."""
    models = node.get("/v1/models")
    fitting = [one for one in models if one["key"].startswith(model)] if len(model) >= 4 else []
    exact = [one for one in models if one["reference"] == model]
    named = [one for one in models if one["reference"].partition("@")[0] == model]
    found = exact or named or fitting
    if not found:
        raise NotFound(f"{model}: no such model on this node", hint="see: modelpack node ls")
    if len(found) > 1:
        keys = ", ".join(one["key"][:12] for one in found[:5])
        raise NotFound(f"{model}: is any of {keys}", hint="name one by its key")
    return dict(found[0])


def _line(model: dict[str, Any]) -> str:
    fetch = model["fetch"]
    if fetch is None:
        held = ["pinned"] * model["pinned"]
        held += [count(model["leases"], "lease")] * bool(model["leases"])
        return "  ".join(
            [model["key"][:12], f"{size(model['bytes_total']):>8}", model["reference"], *held]
        )
    words = fetch["error"] or f"{fetch['state']} {fetch['phase']}".strip()
    done = f"{size(fetch['bytes_done'])} of {size(fetch['bytes_total'])}"
    return f"{model['key'][:12]}  {words}  {done}  {model['reference']}"


def _phases(model: dict[str, Any]) -> str:
    took = [f"{name} {seconds(value)}" for name, value in model.get("phases", {}).items()]
    return f"  {', '.join(took) or 'how long each phase took is not known'}"


def _owner(lease: dict[str, Any]) -> str:
    owner = lease["owner"]
    name = "/".join(part for part in (owner["namespace"], owner["name"]) if part)
    return f"{lease['id']} of {owner['kind']} {name}".rstrip()


def _code(model: dict[str, Any]) -> int:
    return 5 if model["state"] in ("failed", "cancelled", "waiting") else 0
