"""Any sequence of operations, with restarts, on a store with little room."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from cache_daemon.api.errors import InUse, NoSpace, NoSuchModel
from cache_daemon.api.values import Owner, snapshot_key
from cache_daemon.space.room import Limits
from cache_daemon.store.store import Store
from tests.cache_daemon.conftest import content, identity, publish, read

KIB = 1024
LIMITS = Limits(keep_free=0.0, inodes_free=0.0, most=400 * KIB)
FILES = {name: content(name, (n + 1) * 10 * KIB) for n, name in enumerate("abcdefgh")}


class StoreMachine(RuleBasedStateMachine):
    """The store beside a model of it that fits into a few lines."""

    models = Bundle("models")

    def __init__(self):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.store = Store(self.directory / "store", LIMITS)
        self.files = {}  # key -> what its tree must hold
        self.leases = {}
        self.pins = set()

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.directory)

    def held(self):
        return set(self.leases.values()) | self.pins

    @rule(target=models, names=st.sets(st.sampled_from(sorted(FILES)), min_size=1, max_size=4))
    def publish(self, names):
        files = {f"{name}.bin": FILES[name] for name in sorted(names)}
        name = "".join(sorted(names))
        key = snapshot_key(name, files)
        if self.store.has(key):  # as the fetcher does
            return key
        before = {one.key for one in self.store.snapshots()}
        try:
            key = publish(self.store, name, files, seconds=len(names)).key
        except NoSpace:
            assert {one.key for one in self.store.snapshots()} == before
            return key
        self.files[key] = files
        self.gone(before - {one.key for one in self.store.snapshots()})
        return key

    @rule(key=models, lease=st.sampled_from(["p1", "p2", "p3"]))
    def lease(self, key, lease):
        try:
            self.store.lease(lease, key, Owner())
        except NoSuchModel:
            assert key not in self.files
        except InUse:
            assert self.leases[lease] != key
        else:
            self.leases[lease] = key

    @rule(lease=st.sampled_from(["p1", "p2", "p3"]))
    def release(self, lease):
        if lease in self.leases:
            self.store.release(lease)
            del self.leases[lease]

    @rule(key=models)
    def pin(self, key):
        if key in self.files:
            self.store.pin(key)
            self.pins.add(key)

    @rule(key=models)
    def unpin(self, key):
        if key in self.files:
            assert self.store.unpin(key) == (key in self.pins)
            self.pins.discard(key)

    @rule(key=models)
    def remove(self, key):
        try:
            self.store.remove(key)
        except NoSuchModel:
            assert key not in self.files
        except InUse:
            assert key in self.held()
        else:
            assert key not in self.held()
            self.gone({key})

    @rule()
    def collect(self):
        assert self.store.collect().snapshots == []

    @rule(needed=st.integers(1, 200 * KIB))
    def evict(self, needed):
        self.gone(set(self.store.collect(needed).snapshots))

    @rule(debris=st.booleans())
    def restart(self, debris):
        self.store.close()
        if debris:
            (self.directory / "store" / "snapshots" / ".new-x").mkdir()
        self.store = Store(self.directory / "store", LIMITS)

    def gone(self, keys):
        assert not keys & self.held()
        for key in keys:
            del self.files[key]

    @invariant()
    def snapshots_are_what_was_published(self):
        assert {one.key for one in self.store.snapshots()} == set(self.files)
        for key, files in self.files.items():
            assert read(self.store, key) == files

    @invariant()
    def the_disk_has_no_more_than_that(self):
        wanted = {identity(data) for files in self.files.values() for data in files.values()}
        assert {id_ for id_, _ in self.store.files.all()} == wanted
        assert self.store.used() <= LIMITS.most

    @invariant()
    def holds_are_kept(self):
        assert {lease.id: lease.key for lease in self.store.leases()} == self.leases
        assert {pin.key for pin in self.store.pins()} == self.pins


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
