"""What Prometheus sees of a daemon that has seen something."""

import json
import re
from pathlib import Path

import pytest

from cache_daemon.observe.counts import Counter, Histogram
from modelpack.spec.reference import Reference
from modelpack.verbs.node import Node
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.test_mirror import Client
from tests.support.faults import fault_proxy
from tests.support.processes import free_port, give_back, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "operations" / "metrics.md"
SUFFIX = re.compile(r"_(bucket|sum|count)$")


@pytest.fixture
def busy(daemon, registry, model, name, session):
    """A daemon with a model, a lease, a refusal, a mirror that was asked; what it counted."""
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    port = free_port()
    one = daemon(
        f'--registries=["{registry.host}"]', f"--mirror=127.0.0.1:{port}",
        f'--mirror-for=["{registry.host}"]',
    ).start()  # fmt: skip
    node = Node(one.socket)
    one.node("prefetch", "elsewhere.example.com/x:v1", code=4)
    node.send("PUT", "/v1/leases/a", {"ref": f"{registry.host}/{name}:v1", "seconds": 60})
    client = Client(port, registry.host, name)
    status, _, manifest = client.ask("manifests", "v1")
    assert status == 200
    layer = json.loads(manifest)["layers"][0]
    assert client.ask("blobs", layer["digest"])[0] == 200
    layers = 'modelpack_cache_layers_total{result="proven"}'
    wait_until(lambda: one.metrics()[layers] == len(json.loads(manifest)["layers"]) - 1)
    yield one, layer["size"]
    give_back(port)


def test_the_page_names_what_is_there(busy):
    """docs/operations/metrics.md and /metrics have the same names and labels."""
    one, _ = busy
    shown = set()
    for sample in one.metrics():
        name, _, labels = sample.partition("{")
        names = re.findall(r'(\w+)="', labels)
        label = next((one for one in names if one != "le"), "")
        shown.add(SUFFIX.sub("", name) + (f"{{{label}}}" if label else ""))
    documented = re.findall(r"^\| `(\w+(?:\{\w+\})?)` \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(documented)


def test_the_numbers_are_right(busy, model):
    """Bytes received and sent, durations, refusals, holds."""
    one, size = busy
    found = {key.removeprefix("modelpack_cache_"): value for key, value in one.metrics().items()}
    total = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    assert found["used_bytes"] == found["held_bytes"] == total
    assert total < found["capacity_bytes"] <= found["used_bytes"] + found["disk_free_bytes"]
    assert found["disk_size_bytes"] > found["disk_free_bytes"] > 0
    assert total <= found['received_bytes_total{from="registry"}'] < total * 1.1
    assert found['fetch_duration_seconds_count{outcome="ready"}'] == 1
    assert found['fetch_duration_seconds_bucket{le="+Inf",outcome="ready"}'] == 1
    assert found['lease_duration_seconds_count{outcome="held"}'] == 1
    assert found['refusals_total{reason="denied"}'] == 1
    assert found['mirror_answers_total{source="disk"}'] == 1
    assert 0.9 * size < found['mirror_bytes_total{source="disk"}'] <= size
    assert (found["ready"], found["leases"], found["damaged_files_total"]) == (1, 1, 0)
    one.node("drain")
    assert one.metrics()["modelpack_cache_ready"] == 0


def test_what_waits_is_counted(daemon, registry, model, name, session):
    """A prefetch that is tried again, and one that lacks a credential."""
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    with fault_proxy(registry.host) as proxy:
        one = daemon(f'--registries=["{proxy.host}"]').start()
        proxy.add("GET .*/blobs/", skip=1, status=403)
        Node(one.socket).send("POST", "/v1/models", {"ref": f"{proxy.host}/{name}:v1"})
        waiting = 'modelpack_cache_waiting_prefetches{for="credential"}'
        wait_until(lambda: one.metrics()[waiting] == 1)
        found = one.metrics()
    assert found['modelpack_cache_waiting_prefetches{for="retry"}'] == 0
    assert found['modelpack_cache_fetch_duration_seconds_count{outcome="failed"}'] == 1
    assert found['modelpack_cache_refusals_total{reason="denied"}'] == 1
    one.stop()
    [line] = one.lines("prefetch waits for a credential")
    assert name in line["reference"]
    assert line["digest"].startswith("sha256:")


def test_counting():
    """Known labels from 0, bounds belong to their bucket, nothing counts backwards."""
    counter = Counter("a", "b")
    counter.add("a", 2)
    counter.add("a", -5)
    assert counter.read() == {"a": 2, "b": 0}
    histogram = Histogram((1.0, 10.0), "x")
    for seconds in (0.5, 1.0, 2.0, 99.0):
        histogram.observe("x", seconds)
    assert histogram.read() == {"x": ([2, 3, 4], 102.5)}
