"""Does a refusal tell whether a model is cached? The same caller without rights, many times.

Two private models, one on the node and one not; a caller with a wrong password asks for them in turn,
through the control API and through the mirror. Reported is the difference of the medians with the
95 % bootstrap interval, and how often a guess by time would be right (0.5 is a coin; the area under
the ROC curve).
"""

import http.client
import json
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from bench import node
from bench.mirror import free_port
from modelpack.spec.errors import ModelpackError
from modelpack.verbs.node import Node

USER, PASSWORD = "ann", "secret"


def compare(cached: Callable[[], None], absent: Callable[[], None], samples: int) -> dict:
    """Time both, in random order; milliseconds."""
    generator = random.Random(1)
    took: dict[bool, list[float]] = {True: [], False: []}
    order = [True, False] * samples
    generator.shuffle(order)
    for here in order:
        started = time.perf_counter()
        (cached if here else absent)()
        took[here].append(1000 * (time.perf_counter() - started))
    differences = sorted(
        statistics.median(generator.choices(took[True], k=samples))
        - statistics.median(generator.choices(took[False], k=samples))
        for _ in range(1000)
    )
    return {
        "samples": samples,
        "cached_median": round(statistics.median(took[True]), 3),
        "absent_median": round(statistics.median(took[False]), 3),
        "difference_interval": [round(differences[25], 3), round(differences[974], 3)],
        "guess_right": round(_area(took[True], took[False]), 3),
    }


def _area(one: list[float], other: list[float]) -> float:
    """The chance that a random sample of the one is larger than one of the other."""
    marked = sorted([(value, True) for value in one] + [(value, False) for value in other])
    ranks = sum(rank for rank, (_, first) in enumerate(marked, 1) if first)
    return (ranks - len(one) * (len(one) + 1) / 2) / (len(one) * len(other))


def measure(modelpack: str, data: Path, registry: Callable, samples: int = 1000) -> dict:
    """Publish two small private models, cache one, ask for both."""
    users = data / "htpasswd"
    users.write_bytes(
        subprocess.run(["htpasswd", "-Bbn", "-C", "4", USER, PASSWORD], check=True,
                       capture_output=True).stdout
    )  # fmt: skip
    port = free_port()
    with registry(data / "private", f"auth: {{htpasswd: {{realm: x, path: {users}}}}}\n") as host:
        subprocess.run([modelpack, "login", host, "-u", USER, "--password-stdin"], check=True,
                       input=PASSWORD.encode(), stdout=subprocess.DEVNULL)  # fmt: skip
        pushed = {which: _push(modelpack, data, host, which) for which in ("cached", "absent")}
        subprocess.run([modelpack, "logout", host], check=True, stdout=subprocess.DEVNULL)
        options = (f"--mirror=127.0.0.1:{port}", f'--mirror-for=["{host}/bench"]')
        with node.daemon(data / "oracle", host, *options) as (socket, _):
            secret = {"username": USER, "password": PASSWORD}
            asked = Node(socket)
            found = asked.send(
                "POST", "/v1/models", {"ref": pushed["cached"][0], "credential": secret}
            )
            for _ in asked.watch(found["key"]):
                pass
            return {
                "lease by tag": compare(*(_lease(socket, pushed[w][0]) for w in pushed), samples),
                "lease by digest": compare(
                    *(_lease(socket, pushed[w][1]) for w in pushed), samples
                ),
                "blob of the mirror": compare(
                    *(_blob(port, host, w, pushed[w][2]) for w in pushed), samples
                ),
            }


def _push(modelpack: str, data: Path, host: str, which: str) -> tuple[str, str, str]:
    model = data / "tiny"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    (model / "weights.bin").write_bytes(random.Random(which).randbytes(3_000_000))
    reference = f"{host}/bench/{which}:v1"
    done = subprocess.run([modelpack, "push", str(model), reference, "--json"], check=True,
                          capture_output=True)  # fmt: skip
    digest = json.loads(done.stdout)["digest"]
    shown = subprocess.run(
        [modelpack, "inspect", reference, "--json"], check=True, capture_output=True
    )
    layers = json.loads(shown.stdout)["layers"]
    return reference, f"{host}/bench/{which}@{digest}", layers[0]["digest"]


def _lease(socket: Path, reference: str) -> Callable[[], None]:
    body = {"ref": reference, "credential": {"username": USER, "password": "guess"}}

    def ask() -> None:
        try:
            Node(socket).send("PUT", "/v1/leases/oracle", body)
        except ModelpackError:
            return
        raise AssertionError("not refused")

    return ask


def _blob(port: int, host: str, which: str, digest: str) -> Callable[[], None]:
    path = f"/v2/bench/{which}/blobs/{digest}?ns={quote(host)}"

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path, headers={"Authorization": "Bearer guess"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (404, b"")
        connection.close()

    return ask
