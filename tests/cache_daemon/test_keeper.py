"""Promises outlive the daemon: prefetches, pins; private ones wait for a credential."""

import pytest

from cache_daemon.api.values import Priority
from cache_daemon.fetch.queue import Queue
from modelpack.spec.reference import Reference
from modelpack.verbs.node import Node
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.process import trusted
from tests.oci.conftest import Known
from tests.support.processes import wait_until
from tests.support.tokens import PASSWORD, USER
from tests.support.weights import tree


@pytest.fixture
def reference(proxy, model, name, session):
    """A model, by way of a proxy."""
    push(str(model), Reference.parse(f"{proxy.host}/{name}:v1"), session(), PushOptions())
    return f"{proxy.host}/{name}:v1"


def state(node):
    return [model["state"] for model in node.get("/v1/models")]


def test_a_prefetch_goes_on_after_kill_9(daemon, proxy, reference, model):
    """Nobody has to ask again; a pin that came before the model holds it."""
    one = daemon(f'--registries=["{proxy.host}"]').start()
    node = Node(one.socket)
    slow = proxy.add("GET .*/blobs/", slice_pause=(100_000, 0.02))
    key = node.send("POST", "/v1/models", {"ref": reference, "pin": True})["key"]
    wait_until(lambda: node.get(f"/v1/models/{key}")["state"] == "fetching")
    one.stop(9)
    slow.times = 0
    one.start()
    wait_until(lambda: state(node) == ["ready"])
    found = node.get(f"/v1/models/{key}")
    assert found["pinned"]
    assert [tree(path) for path in one.trees()] == [tree(model)]
    wait_until(lambda: not list((one.directory / "root/wants").iterdir()))


def test_a_private_prefetch_waits_for_a_credential(daemon, token_registry, model, name, session):
    """No secret is on the disk: after a restart it is said what is missing, and then it goes on."""
    known = Known(USER, PASSWORD)
    text = f"{token_registry.host}/{name}:v1"
    push(str(model), Reference.parse(text), session(credentials=known), PushOptions())
    one = daemon(f'--registries=["{token_registry.host}"]', trusted(token_registry)).start()
    node = Node(one.socket)
    node.send("POST", "/v1/pause")
    body = {"ref": text, "credential": {"username": USER, "password": PASSWORD}, "pin": True}
    key = node.send("POST", "/v1/models", body)["key"]
    one.stop(9)
    for path in (one.directory / "root").rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes()
    one.start()
    wait_until(lambda: "does not accept" in node.get("/v1/models")[0]["fetch"]["error"])
    assert state(node) == ["waiting"]
    assert "waiting" in one.node("ls", "--json")
    assert node.send("POST", "/v1/models", body)["key"] == key
    wait_until(lambda: state(node) == ["ready"])
    assert node.get(f"/v1/models/{key}")["pinned"]


def test_a_removed_prefetch_is_not_tried_again(daemon, proxy, reference):
    """Cancelling takes the promise away, too."""
    one = daemon(f'--registries=["{proxy.host}"]').start()
    node = Node(one.socket)
    node.send("POST", "/v1/pause")
    key = node.send("POST", "/v1/models", {"ref": reference})["key"]
    assert state(node) == ["queued"]
    node.send("DELETE", f"/v1/models/{key}")
    one.stop(9)
    one.start()
    assert state(node) == []
    assert not list((one.directory / "root/wants").iterdir())


def test_paused_fetches_wait(daemon, proxy, reference):
    """Nothing begins until it is taken back; status says so."""
    one = daemon(f'--registries=["{proxy.host}"]').start()
    node = Node(one.socket)
    node.send("POST", "/v1/pause")
    node.send("POST", "/v1/models", {"ref": reference})
    assert node.get("/v1/stats")["paused"]
    assert state(node) == ["queued"]
    node.send("DELETE", "/v1/pause")
    wait_until(lambda: state(node) == ["ready"])


class _Work:
    """Notes the order in which it is asked."""

    def __init__(self) -> None:
        self.order = []

    def fetch(self, wanted, listener, stop):
        self.order.append(wanted.key)
        raise OSError("done")


class _Wanted:
    def __init__(self, key) -> None:
        self.key = self.name = key


def test_what_is_due_earlier_goes_first():
    """Within one priority; a pod goes before all of them."""
    work = _Work()
    queue = Queue(work, slots=1)
    queue.pause()
    queue.submit(_Wanted("never"), Priority.PREFETCH)
    queue.submit(_Wanted("later"), Priority.PREFETCH, 2e9)
    queue.submit(_Wanted("soon"), Priority.PREFETCH, 1e9)
    queue.submit(_Wanted("repair"), Priority.REPAIR, 1.0)
    queue.pause(on=False)
    wait_until(lambda: len(work.order) == 4)
    queue.close()
    assert work.order == ["soon", "later", "never", "repair"]
