"""Versions that share their blocks, on a real xfs and where nothing can be shared."""

import json
from dataclasses import replace

import pytest

from cache_daemon.api.errors import NoSpace
from cache_daemon.fetch.access import Access, Policy
from cache_daemon.fetch.fetcher import Fetcher
from cache_daemon.fetch.node import Ask, Node
from cache_daemon.fetch.queue import Queue
from cache_daemon.space.room import Limits
from cache_daemon.store.scrub import Scrub
from cache_daemon.store.store import Store
from modelpack.spec.reference import Reference
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.conftest import ROOMY, publish
from tests.conftest import fast
from tests.support.mounts import SHARING, free_bytes, loop_mount
from tests.support.processes import wait_until
from tests.support.weights import bf16, make_tensors, safetensors, tree

TENSORS = 20
SIZE = 1_200_002  # no multiple of a block: every chunk has two edges


@pytest.fixture
def open_node(tmp_path):
    nodes = []

    def open_(host, root, limits=ROOMY):
        store = Store(root, limits)
        access = Access(Policy((host,), (tmp_path,)), fast())
        nodes.append(Node(store, access, Queue(Fetcher(store, jobs=3))))
        return nodes[-1]

    yield open_
    for node in nodes:
        node.close()


@pytest.fixture(params=[*SHARING, "ext4"])
def disk(request, tmp_path):
    with loop_mount(tmp_path, request.param) as point:
        yield request.param, point


@pytest.fixture
def xfs(tmp_path):
    with loop_mount(tmp_path, "xfs") as point:
        yield point


@pytest.fixture
def versions(registry, name, tmp_path, session):
    """Two shards; v2 has one tensor of twenty changed in each, v3 a header that is 8 bytes longer.

    Returns the reference of a version, and what it holds.
    """
    model = tmp_path / "model"
    shards = [make_tensors(number, [SIZE] * TENSORS) for number in (1, 2)]
    references, trees = {}, {}

    def publish(version, metadata):
        for number, tensors in enumerate(shards, 1):
            safetensors(model / f"model-{number}.safetensors", tensors, metadata)
        (model / "config.json").write_text(json.dumps({"version": version}))
        references[version] = f"{registry.host}/{name}:{version}"
        push(str(model), Reference.parse(references[version]), session(), PushOptions())
        trees[version] = tree(model)

    publish("v1", {"note": "x"})
    for number, tensors in enumerate(shards):
        tensors["layers.7.weight"] = bf16(100 + number, SIZE)
    publish("v2", {"note": "x"})
    publish("v3", {"note": "x" * 9})
    return lambda version: (references[version], trees[version])


def fetched(node, versions, version):
    """Fetch a version, compare it; returns the model."""
    reference, expected = versions(version)
    key = node.ensure(Ask(ref=reference)).key
    node.queue.job(key).wait(60)
    assert tree(node.store.tree(key)) == expected
    assert Scrub(node.store, 0, 0).once() == set()
    return node.model(key)


def test_a_second_version_costs_its_changes(disk, open_node, registry, versions):
    """On xfs a version takes what is new of it, besides some edges; on ext4 all of it."""
    kind, point = disk
    shares = kind in SHARING
    node = open_node(registry.host, point / "root")
    first = fetched(node, versions, "v1")
    before = free_bytes(point)
    second = fetched(node, versions, "v2")
    cost = before - free_bytes(point)
    changed = 2 * SIZE
    assert second.bytes_fetched < changed + 10_000
    assert (first.bytes_cloned, second.bytes_reused > 0.9 * second.bytes_total) == (0, True)
    if shares:
        assert second.bytes_reused - second.bytes_cloned < 50_000
        assert changed <= cost < changed + 300_000
    else:
        assert second.bytes_cloned == 0
        assert cost >= second.bytes_unique
    assert node.remove(first.key) < (0.2 if shares else 1.01) * first.bytes_total
    assert Scrub(node.store, 0, 0).once() == set()
    assert tree(node.store.tree(second.key)) == versions("v2")[1]


def test_offsets_that_do_not_agree(disk, open_node, registry, versions):
    """Where a header has grown by 8 bytes, no block is the same: everything is copied."""
    _, point = disk
    node = open_node(registry.host, point / "root")
    fetched(node, versions, "v2")
    third = fetched(node, versions, "v3")
    assert third.bytes_fetched < 20_000
    assert third.bytes_reused > 0.99 * third.bytes_total
    assert third.bytes_cloned == 0


def limit(node, limits):
    """Change the limits of an open store."""
    node.store._evictor = replace(node.store._evictor, _limits=limits)


def test_what_fits_when_it_is_shared_is_not_refused(xfs, open_node, registry, versions):
    """A version of a pinned model comes where all of it would not fit; nothing is evicted."""
    node = open_node(registry.host, xfs / "root")
    first = fetched(node, versions, "v1")
    node.pin(first.key)
    total = node.store.disk().total
    left = 10_000_000  # less than a version, more than its changes
    limit(node, Limits((free_bytes(xfs) - left) / total, inodes_free=0.0))
    with pytest.raises(NoSpace):
        fetched(node, versions, "v3")
    assert fetched(node, versions, "v2").bytes_cloned > 40_000_000


def test_evicting_what_is_shared_goes_on_until_there_is_room(xfs, open_node, registry, versions):
    """Files that share blocks free less than their sizes say: then more of them go."""
    node = open_node(registry.host, xfs / "root")
    for version in ("v1", "v2"):
        fetched(node, versions, version)
    free = free_bytes(xfs)
    limit(node, Limits(free / node.store.disk().total, inodes_free=0.0))
    node.store.begin("f" * 40, ())
    assert len(node.store.reserve("f" * 40, 30_000_000).snapshots) == 2
    wait_until(lambda: free_bytes(xfs) > free + 40_000_000)  # xfs frees a little later
    assert node.store.snapshots() == []


def test_a_damaged_neighbour_is_no_source(xfs, open_node, registry, versions):
    """What is shared is hashed where it is now: wrong bytes are fetched instead."""
    node = open_node(registry.host, xfs / "root")
    first = fetched(node, versions, "v1")
    path = node.store.tree(first.key) / "model-1.safetensors"
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(SIZE * 3)
        file.write(b"\0" * 10)
    reference, expected = versions("v2")
    key = node.ensure(Ask(ref=reference)).key
    node.queue.job(key).wait(60)
    assert tree(node.store.tree(key)) == expected
    assert node.model(key).bytes_fetched > 3 * SIZE
    assert node.model(key).bytes_cloned > 40_000_000


def test_an_operator_is_told_how_much_is_shared(xfs, daemon, registry, versions):
    """`explain` says how much of what was not fetched takes no space of its own."""
    one = daemon(f'--registries=["{registry.host}"]', name=xfs.name).start()
    for version in ("v1", "v2"):
        one.node("prefetch", versions(version)[0], "--wait")
    assert "shared on disk" not in one.node("explain", versions("v1")[0])
    assert "from this disk (of which 45.6 MB shared on disk)" in one.node(
        "explain", versions("v2")[0]
    )
    one.stop()


def test_records_of_an_earlier_version(tmp_path, store):
    """They do not say what is shared: nothing is."""
    one = publish(store, "v1", {"a": b"x" * 1000})
    store.close()
    path = tmp_path / "store" / "snapshots" / one.key / "snapshot.json"
    record = json.loads(path.read_text())
    del record["bytes_cloned"]
    path.write_text(json.dumps(record))
    again = Store(tmp_path / "store", ROOMY)
    assert again.snapshots() == [one]
    again.close()
