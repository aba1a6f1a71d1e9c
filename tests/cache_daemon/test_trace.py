"""The store through weeks of a node's life, on a disk that is much too small.

A megabyte of the trace is a byte here. The store beside a model of it: sets of files, and sums.
"""

import itertools
import math
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import policies, simulate, trace
from cache_daemon.api.errors import NoSpace
from cache_daemon.api.values import Owner, Snapshot, StoredFile, snapshot_key
from cache_daemon.space.room import Limits
from cache_daemon.store import evictor, holds, ledger
from cache_daemon.store import store as store_module
from cache_daemon.store.snapshots import Papers
from cache_daemon.store.store import Store
from tests.cache_daemon.conftest import identity


@pytest.fixture
def clock(monkeypatch):
    """The time of the trace, wherever the store looks at it."""
    now = SimpleNamespace(value=0.0, ns=itertools.count())
    fake = SimpleNamespace(time=lambda: now.value, time_ns=lambda: next(now.ns))
    for module in (evictor, holds, ledger, store_module):
        monkeypatch.setattr(module, "time", fake)
    return now


@pytest.fixture
def directory(tmp_path):
    """In memory where that can be: thousands of syncs."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path / "store"
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path) / "store"


class Node:
    """Does to a store what the daemon does, and checks it after every step."""

    def __init__(self, directory, found, share, clock, *, slowness):
        self.trace = found
        self.limit = int(found.size * share)
        self.clock = clock
        self.slowness = slowness  # how much longer fetches take than in the trace
        self.store = Store(directory, Limits(keep_free=0.0, inodes_free=0.0, most=self.limit))
        self.sizes = {
            identity(f.id.encode()): f.size for m in found.models.values() for f in m.files
        }
        self.chunks = {m.key: dict(c for f in m.files for c in f.chunks) for m in found.models.values()}  # fmt: skip
        self.models = {self.key(model): model for model in found.models.values()}
        self.flights = {}  # key -> (when it ends, snapshot, ids to bring, ids that were here)
        self.waiting = {}  # pod -> key
        self.leases = {}  # pod -> key
        self.pins = set()
        self.evictions = []
        self.seen = set()  # kinds of moments that a trace should have

    @staticmethod
    def key(model):
        return snapshot_key(model.key, [])

    def run(self):
        for step, event in enumerate(self.trace.events):
            for key in sorted(self.flights, key=lambda key: self.flights[key][0]):
                if self.flights[key][0] <= event.time:
                    self.clock.value = self.flights[key][0]
                    self.arrive(key)
                    self.check()
            self.clock.value = event.time
            self.step(step, event, self.key(self.trace.models[event.model]))
            self.check()
        self.check_trees()
        self.store.close()

    def step(self, step, event, key):
        pod = f"{event.who}-{event.model}"
        if event.kind == "stop":
            wanted = self.waiting.pop(pod, None)
            if wanted in self.flights and wanted not in {*self.waiting.values(), *self.pins}:
                self.store.end(wanted)  # cancelled
                del self.flights[wanted]
                self.seen.add("cancelled")
            if self.leases.pop(pod, None):
                self.store.release(pod)
        elif event.kind == "unpin":
            self.store.unpin(key)
            self.pins.discard(key)
        else:
            if (
                not self.store.has(key)
                and key not in self.flights
                and not self.depart(step, event, key)
            ):
                return
            if event.kind == "pin":
                self.store.pin(key)
                self.pins.add(key)
            elif event.kind == "start" and key in self.flights:
                self.waiting[pod] = key
            elif event.kind == "start":
                self.lease(pod, key)

    def lease(self, pod, key):
        self.store.lease(pod, key, Owner("pod", pod))
        self.leases[pod] = key

    def depart(self, step, event, key):
        """A fetch begins: room is made for it, or it is refused."""
        model = self.models[key]
        ids = {identity(file.id.encode()): file.size for file in model.files}
        self.store.begin(key, ids)
        here = {id_ for id_, size in ids.items() if self.store.files.has(id_, size)}
        absent = sum(ids[id_] for id_ in ids.keys() - here)
        self.flights[key] = (0.0, None, set(), here)
        before, disk = self.known(), self.on_disk()
        needed = self.taken() + absent - self.limit
        try:
            collected = self.store.reserve(key, absent)
        except NoSpace as error:
            self.check_refused(error.shortfall, absent)
            assert (self.known(), self.on_disk()) == (before, disk)
            self.store.end(key)
            del self.flights[key]
            return False
        self.check_evicted(before, set(collected.snapshots), needed)
        assert collected.bytes_freed == self.total(disk - self.on_disk())
        if collected.snapshots:
            self.evictions.append((step, [self.models[gone].key for gone in collected.snapshots]))
        local = {chunk for one in self.known() for chunk in self.chunks[self.models[one].key]}
        moved = sum(size for chunk, size in self.chunks[model.key].items() if chunk not in local)
        seconds = trace.OVERHEAD + moved * model.seconds_per_mb
        files = tuple(
            StoredFile(f"{n}.bin", id_, size) for n, (id_, size) in enumerate(ids.items())
        )
        snapshot = Snapshot(
            key=key, reference=f"r/d/m:{model.key}", repository="r/d/m", digest=model.key,
            domain="r/d", files=files, bytes_total=model.size, bytes_fetched=moved,
            bytes_reused=model.size - moved, fetch_seconds=seconds * event.noise, created=event.time,
        )  # fmt: skip
        end = event.time + seconds * self.slowness
        self.flights[key] = (end, snapshot, ids.keys() - here, here)
        if len(self.flights) > 1:
            self.seen.add("at once")
        if not self.slowness:
            self.arrive(key)
        return True

    def arrive(self, key):
        _, snapshot, absent, _ = self.flights.pop(key)
        area = self.store.partial(key)
        area.mkdir(parents=True)
        for id_ in absent:
            with (area / id_).open("wb") as file:
                file.truncate(self.sizes[id_])
        self.store.settle(key)
        self.store.publish(snapshot, {id_: area / id_ for id_ in absent}, Papers())
        self.store.drop_partial(key)
        self.check_tree(snapshot)
        for pod in [pod for pod, wanted in self.waiting.items() if wanted == key]:
            self.lease(pod, self.waiting.pop(pod))

    # What there should be.

    def known(self):
        return {one.key for one in self.store.snapshots()}

    def on_disk(self):
        return {id_ for id_, _ in self.store.files.all()}

    def held(self):
        return set(self.leases.values()) | self.pins

    def files(self, keys):
        """The files of these models, and those that fetches under way found here."""
        found = {identity(file.id.encode()) for key in keys for file in self.models[key].files}
        return found.union(*(here for *_, here in self.flights.values()))

    def total(self, ids):
        return sum(self.sizes[id_] for id_ in ids)

    def reserved(self):
        return sum(self.total(absent) for _, _, absent, _ in self.flights.values())

    def taken(self):
        return self.total(self.files(self.known())) + self.reserved()

    # What must hold.

    def check(self):
        assert self.on_disk() == self.files(self.known())
        assert self.taken() <= self.limit
        assert self.held() & self.models.keys() <= self.known() | self.flights.keys()

    def check_evicted(self, before, gone, needed):
        """What went was held by nobody, was enough, and any one of it would have been missed."""
        assert not gone & self.held()
        left = before - gone
        assert self.known() == left
        full = self.total(self.files(before))
        assert full - self.total(self.files(left)) >= needed
        for one in gone:
            assert full - self.total(self.files(left | {one})) < needed
        shared = self.files(gone) & self.files(left)
        if gone and shared:
            self.seen.add("shared")

    def check_refused(self, shortfall, absent):
        """What is missing after everything that nobody holds would be gone, to the byte."""
        kept = self.total(self.files(self.held() & self.known())) + self.reserved()
        assert shortfall == kept + absent - self.limit > 0
        self.seen.add("refused")

    def check_trees(self):
        for snapshot in self.store.snapshots():
            self.check_tree(snapshot)

    def check_tree(self, snapshot):
        for file in snapshot.files:
            linked = self.store.tree(snapshot.key) / file.path
            assert linked.stat().st_ino == self.store.files.path(file.id).stat().st_ino


def check_trace(directory, clock, seed, share, days):
    node = Node(directory, trace.generate(seed, days=days), share, clock, slowness=20)
    node.run()
    assert node.evictions
    return node


def test_eviction_keeps_its_promises_at_every_step(directory, clock):
    """100 models, a disk for a tenth, a quarter, half of them; holds, scans, fetches at once."""
    seen = set()
    for seed, share in enumerate((0.1, 0.25, 0.5)):
        seen |= check_trace(directory, clock, seed, share, days=4).seen
        shutil.rmtree(directory)
    assert seen == {"refused", "shared", "at once", "cancelled"}


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(10, 15))
def test_eviction_keeps_its_promises_for_weeks(directory, clock, seed, share):
    """As above, longer, on other traces."""
    check_trace(directory, clock, seed, share, days=21)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_simulator_evicts_what_the_store_evicts(directory, clock, share):
    """What bench/eviction.py reports is what the product does: the same models at the same steps."""
    found = trace.generate(7, days=4)
    node = Node(directory, found, share, clock, slowness=0)
    node.run()
    classes = simulate.Classes.of(found.models.values())
    run = simulate.Node(found, node.limit, policies.Ours(), classes).run()
    assert node.evictions == run.evictions
    assert len(run.evictions) > 20


def test_traces_are_what_they_say():
    """The same seed gives the same trace; sizes span two orders of magnitude, popularity is skewed."""
    found = trace.generate(3)
    assert found == trace.generate(3) != trace.generate(4)
    sizes = sorted(model.size for model in found.models.values())
    assert len(sizes) == 100
    assert 50 <= sizes[-1] / sizes[0] <= 1000
    assert found.size < 0.8 * sum(sizes)  # shared files
    starts = [event.model for event in found.events if event.kind == "start"]
    counts = sorted((starts.count(key) for key in set(starts)), reverse=True)
    assert sum(counts[:10]) > 0.4 * len(starts)
    assert math.isclose(found.events[-1].time / trace.DAY, 22, abs_tol=3)
    assert {event.kind for event in found.events} == {"start", "stop", "prefetch", "pin", "unpin"}
