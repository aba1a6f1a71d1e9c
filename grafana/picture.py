"""Two daemons with an eventful minute before a real Prometheus, and what the panels show of it.

    .venv/bin/python -m grafana.picture

There is no Grafana here: matplotlib draws what Grafana's queries return, in Grafana's units.
Writes docs/operations/dashboard.png.
"""

import contextlib
import json
import math
import os
import tempfile
import time
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from grafana.panels import PANELS, Panel
from modelpack.spec.errors import ModelpackError
from modelpack.spec.reference import Reference
from modelpack.state.database import Database
from modelpack.state.digests import DigestCache
from modelpack.verbs.node import Node
from modelpack.verbs.push import PushOptions, push
from modelpack.verbs.session import Session
from tests.cache_daemon.process import Daemon
from tests.cache_daemon.test_mirror import Client
from tests.conftest import fast
from tests.support import servers
from tests.support.faults import fault_proxy
from tests.support.processes import free_port
from tests.support.prometheus import Prometheus, prometheus
from tests.support.weights import make_model

OPERATIONS = Path(__file__).parents[1] / "docs" / "operations"
TOKEN = "0123456789abcdef"
SECONDS = 75
MODELS = 8


def main() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        os.environ["HOME"] = os.environ["DOCKER_CONFIG"] = name
        registry = stack.enter_context(servers.docker_registry(directory / "registry"))
        proxy = stack.enter_context(fault_proxy(registry.host))
        publish(directory, registry.host)
        (directory / "token").write_text(TOKEN)
        nodes, targets = {}, {}
        for node, most in (("node-a", 70_000_000), ("node-b", 40_000_000)):
            mirror, listen = free_port(), free_port()
            (directory / node).mkdir()
            nodes[node] = Daemon(
                directory / node, f'--registries=["{proxy.host}"]', f"--most={most}",
                f"--mirror=127.0.0.1:{mirror}", f'--mirror-for=["{proxy.host}"]',
                f"--listen=127.0.0.1:{listen}", f"--token-file={directory / 'token'}",
                "--prefetch-share=1", "--scrub-hours=0.003",
            ).start(), Client(mirror, proxy.host, "llm/m0")  # fmt: skip
            stack.callback(nodes[node][0].stop)
            targets[f"127.0.0.1:{listen}"] = node
        there = stack.enter_context(
            prometheus(
                directory / "prometheus", targets, directory / "token", OPERATIONS / "alerts.yml"
            )
        )
        begin = time.time()
        live(nodes, proxy, begin)
        draw(there, begin, time.time())
        for rule in there.rules():
            print(rule["name"], rule["state"])


def publish(directory: Path, host: str) -> None:
    database = Database(directory / "state.sqlite")
    session = Session(fast(), database, DigestCache(database), jobs=3)
    for number in range(MODELS):
        model = make_model(directory / f"m{number}", seed=number + 1)
        push(str(model), Reference.parse(f"{host}/llm/m{number}:v1"), session, PushOptions())
        shard = model / "model-00001-of-00002.safetensors"
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        push(str(model), Reference.parse(f"{host}/llm/m{number}:v2"), session, PushOptions())


def live(nodes, proxy, begin: float) -> None:
    """What happens, and when: seconds since the begin."""
    proxy.throttle.rate = 4_000_000
    a, mirror_a = nodes["node-a"]
    b, mirror_b = nodes["node-b"]

    def lease(one, number, version="v1"):
        wanted = {"ref": f"{proxy.host}/llm/m{number}:{version}", "seconds": 30}
        Node(one.socket).send("PUT", f"/v1/leases/{number}-{version}", wanted)

    def prefetch(one, number, version="v1"):
        wanted = {"ref": f"{proxy.host}/llm/m{number}:{version}"}
        Node(one.socket).send("POST", "/v1/models", wanted)

    def pull(client, number):
        client.name = f"llm/m{number}"
        for layer in json.loads(client.ask("manifests", "v1")[2])["layers"]:
            client.ask("blobs", layer["digest"])

    def deny():
        proxy.add("GET .*/llm/m6/blobs/", skip=1, status=403)
        prefetch(a, 6)

    def damage():
        files = (a.directory / "root" / "files").glob("*/*")
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.chmod(0o644)
        with largest.open("r+b") as file:
            file.seek(5000)
            file.write(b"rot")

    events = [
        (3, lambda: lease(a, 0)), (7, lambda: prefetch(b, 0)), (8, lambda: prefetch(b, 1)),
        (14, lambda: pull(mirror_a, 0)), (17, lambda: lease(a, 0, "v2")),
        (20, lambda: [prefetch(b, 2), prefetch(b, 3), prefetch(b, 4)]),
        (32, lambda: pull(mirror_a, 5)), (36, lambda: pull(mirror_a, 0)), (38, deny),
        (42, lambda: prefetch(a, 7)), (44, lambda: lease(b, 4)), (46, lambda: pull(mirror_b, 4)),
        (48, lambda: Node(b.socket).send("POST", "/v1/models", {"ref": "example.com/no:v1"})),
        (50, damage), (60, lambda: lease(a, 0)),
        (66, lambda: Node(b.socket).send("POST", "/v1/drain")),
    ]  # fmt: skip
    for at, do in events:
        time.sleep(max(0.0, begin + at - time.time()))
        with contextlib.suppress(ModelpackError):
            do()
    time.sleep(max(0.0, begin + SECONDS - time.time()))


def draw(there: Prometheus, begin: float, end: float) -> None:
    graphs = [panel for panel in PANELS if not panel.stat]
    numbers = [panel for panel in PANELS if panel.stat]
    rows = math.ceil(len(graphs) / 2)
    figure = plt.figure(figsize=(15, 2.6 * rows + 1.6), layout="constrained")
    grid = figure.add_gridspec(rows + 1, 6, height_ratios=[0.5] + [1] * rows)
    for number, panel in enumerate(numbers):
        _number(figure.add_subplot(grid[0, number]), panel, there)
    for number, panel in enumerate(graphs):
        side = number % 2
        axes = figure.add_subplot(grid[1 + number // 2, 3 * side : 3 * side + 3])
        _graph(axes, panel, there, begin, end)
    figure.savefig(OPERATIONS / "dashboard.png", dpi=75)


def _expression(query: str) -> str:
    return query.replace("$__rate_interval", "10s").replace("$node", ".+")


def _number(axes: Axes, panel: Panel, there: Prometheus) -> None:
    [query] = panel.queries.values()
    value = float(there.query(_expression(query))[0]["value"][1])
    red = panel.bad is not None and value >= panel.bad
    axes.set_axis_off()
    axes.set_title(panel.title, fontsize=10)
    colour = "tab:red" if red else "tab:green"
    axes.text(0.5, 0.4, _shown(value, panel.unit), ha="center", fontsize=22, color=colour)


def _graph(axes: Axes, panel: Panel, there: Prometheus, begin: float, end: float) -> None:
    for legend, query in panel.queries.items():
        for series in there.range(_expression(query), begin, end):
            label = legend
            for name, value in series["metric"].items():
                label = label.replace(f"{{{{{name}}}}}", value)
            times = [at - begin for at, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            # A line that is 0 all the time needs no name.
            axes.plot(times, values, label=label if any(values) else None)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlim(0, end - begin)
    axes.set_ylim(0, 1 if panel.unit == "percentunit" else None)
    axes.yaxis.set_major_formatter(lambda value, _: _shown(value, panel.unit))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, ncols=2, loc="upper left")


def _shown(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "s":
        return f"{value:.3g} s"
    step, letter = (1024, "i") if unit == "bytes" else (1000, "")
    names = ["B", *(f"{power}{letter}B" for power in ("K" if letter else "k", "M", "G"))]
    if unit in ("bytes", "Bps"):
        power = min(3, int(math.log(max(value, 1), step)))
        return f"{value / step**power:.3g} {names[power]}" + ("/s" if unit == "Bps" else "")
    return f"{value:.3g}" + (" req/s" if unit == "reqps" else "")


if __name__ == "__main__":
    main()
