"""`modelpack node top`: what the cache daemon is doing, as it does it."""

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from modelpack.cli.node_verbs import app, with_node
from modelpack.cli.output import Outcome, count, printable, seconds, size
from modelpack.verbs.node import Node

_PERIOD: Final = 1.0
_SHOWN: Final = 15  # fetches; a terminal has so many lines
__all__ = ["app"]


@app.command("top")
@with_node
def top(
    *,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    node: Node,
) -> Outcome:
    """Show fetches with their rate, space, holds and the mirror, once a second until Ctrl-C.

    Once only where standard output is no terminal.

    Examples:

      modelpack node top

      modelpack node top --json
    """
    if not (once or "--json" in sys.argv) and sys.stdout.isatty():
        _live(node)
        return Outcome({}, [])
    found = _look(node)
    return Outcome(found, list(_lines(found)))


def _live(node: Node) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def view() -> Text:
        return Text("\n".join(map(printable, _lines(_look(node)))))

    try:
        with Live(view(), console=Console(), auto_refresh=False) as live:
            while True:
                time.sleep(_PERIOD)
                live.update(view(), refresh=True)
    except KeyboardInterrupt:
        pass  # that is how it ends


def _look(node: Node) -> dict[str, Any]:
    models = [one for one in node.get("/v1/models") if one["fetch"] is not None]
    return {**node.get("/v1/stats"), "fetches": [{**one["fetch"], **_eta(one)} for one in models]}


def _eta(model: dict[str, Any]) -> dict[str, Any]:
    fetch = model["fetch"]
    left = fetch["bytes_total"] - fetch["bytes_done"]
    moving = fetch["state"] == "fetching" and fetch["bytes_per_second"] > 0 and left > 0
    return {"eta_seconds": round(left / fetch["bytes_per_second"], 1) if moving else None}


def _lines(found: dict[str, Any]) -> Iterator[str]:
    capacity = max(1, found["bytes_capacity"])
    yield (
        f"space   {size(found['bytes_used'])} of {size(capacity)} "
        f"({100 * found['bytes_used'] / capacity:.0f} %), {size(found['bytes_held'])} held; "
        f"{size(found['bytes_free'])} of {size(found['bytes_total'])} free on the disk"
    )
    yield (
        f"models  {count(found['models'], 'model')}, {count(found['leases'], 'lease')}, "
        f"{count(found['pins'], 'pin')}"
    )
    sent = found["mirror_bytes"]
    yield "mirror  " + ", ".join(
        f"{size(sent[source])} {words} ({found['mirror_answers'][source]:,})"
        for source, words in (
            ("disk", "from disk"), ("arriving", "while arriving"), ("registry", "relayed"),
        )
    )  # fmt: skip
    brakes = "".join(f", {word}" for word in ("draining", "paused") if found[word])
    yield f"fetches {found['fetching']} fetching, {found['queued']} queued{brakes}"
    for one in found["fetches"][:_SHOWN]:
        yield _fetch(one)
    more = len(found["fetches"]) - _SHOWN
    if more > 0:
        yield f"  and {more:,} more"


def _fetch(one: dict[str, Any]) -> str:
    line = f"  {one['state']:<9} {one['key'][:12]} {one['reference'].partition('@')[0]}"
    if one["state"] != "fetching":
        return f"{line}  {one['error']}".rstrip()
    share = 100 * one["bytes_done"] / max(1, one["bytes_total"])
    rate = f"{size(one['bytes_per_second'])}/s"
    left = f", {seconds(one['eta_seconds'])} left" if one["eta_seconds"] is not None else ""
    done = f"{size(one['bytes_done'])} of {size(one['bytes_total'])} ({share:.0f} %)"
    return f"{line}  {one['phase']}: {done}, {rate}{left}"
