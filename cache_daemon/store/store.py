"""The store: what the daemon keeps, under one lock. No network here."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from cache_daemon.api.errors import InUse, NoSuchLease, NoSuchModel, Refused
from cache_daemon.api.values import Lease, Owner, Pin, Refusal, Snapshot, Want
from cache_daemon.observe.context import about
from cache_daemon.observe.counts import Counts
from cache_daemon.space.room import Disk, Limits
from cache_daemon.store.evictor import Collected, Evictor, disk_of
from cache_daemon.store.files import Files
from cache_daemon.store.holds import Holds
from cache_daemon.store.ledger import Ledger, Usage
from cache_daemon.store.promises import Claim, Promises
from cache_daemon.store.records import Records
from cache_daemon.store.root import Root
from cache_daemon.store.snapshots import Papers, Snapshots
from modelpack.disk.errors import disk_errors
from modelpack.spec.errors import DiskError

_log = logging.getLogger("cache_daemon.store")


class Store:
    """One node's models. Thread-safe; every method leaves the disk correct at any instant."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        """Open and check; raises BadStore, DiskError. Cost: one stat per file."""
        self._root = Root(path)
        self._limits = limits or Limits()
        self.counts = Counts()
        self._lock = threading.RLock()
        self.files = Files(self._root.files)
        self._snapshots = Snapshots(self._root.snapshots, self.files)
        self._known = {one.key: one for one in self._snapshots.load()}
        self._holds = Holds(self._root.leases, self._root.pins)
        self._ledger = Ledger(path / "ledger.sqlite")
        self._ledger.keep_only(self._known)
        self._refused = Records.load(self._root.refused, Refusal)
        self._wants = Records.load(self._root.wants, Want)
        self._promises = Promises()
        self._evictor = Evictor(
            self._known, self._holds, self._ledger, self._promises, self._limits,
            self.disk, self._drop,
        )  # fmt: skip
        self.on_published: Callable[[str], None] = lambda _key: None

    # What is here.

    def snapshots(self) -> list[Snapshot]:
        """Return all snapshots."""
        with self._lock:
            return list(self._known.values())

    def snapshot(self, key: str) -> Snapshot:
        """Return one; raises NoSuchModel."""
        with self._lock:
            try:
                return self._known[key]
            except KeyError:
                raise NoSuchModel(
                    f"{key}: no such model on this node", hint="see: modelpack node ls"
                ) from None

    def has(self, key: str) -> bool:
        """Whether a snapshot is here."""
        with self._lock:
            return key in self._known

    def tree(self, key: str) -> Path:
        """Return the directory to mount."""
        return self._snapshots.tree(key)

    def papers(self, key: str) -> Papers:
        """Return the manifest, config and chunk index that came with a snapshot."""
        return self._snapshots.papers(key)

    def index(self, key: str) -> bytes:
        """Return the chunk index of a snapshot; empty if it has none."""
        return self._snapshots.index(key)

    def proven(self, key: str) -> frozenset[str]:
        """Return the layers of a snapshot that were found to be what their SHA-256 says."""
        return self._snapshots.proven(key)

    def prove(self, key: str, layers: Collection[str]) -> None:
        """Remember that these layers are what their SHA-256 says."""
        with self._lock:
            if key in self._known:
                self._snapshots.prove(key, layers)

    def usage(self) -> Mapping[str, Usage]:
        """Return how snapshots were used."""
        return self._ledger.usage()

    def links(self) -> dict[str, int]:
        """Return how many snapshots, and fetches under way, use each file."""
        with self._lock:
            return self._evictor.links()

    def used(self) -> int:
        """Return the bytes of all files; a shared file counts once."""
        with self._lock:
            return self._evictor.used()

    def held(self) -> int:
        """Return the bytes of the files that leases and pins keep."""
        with self._lock:
            return self._evictor.held()

    def capacity(self) -> int:
        """Return the bytes that models may take now, those that are here and promised included."""
        with self._lock:
            return self._evictor.capacity()

    def disk(self) -> Disk:
        """Return the state of the disk."""
        return disk_of(self._root.path)

    def check_writable(self) -> None:
        """Raise DiskError if a small file cannot be made durable here now."""
        with disk_errors("write to", self._root.path):
            self._root.probe()

    # Coming in.

    def partial(self, key: str) -> Path:
        """Return the staging area of a fetch."""
        return self._root.partial(key)

    def begin(self, key: str, ids: Collection[str]) -> None:
        """A fetch begins that will link to these files: they stay, until `end`."""
        with self._lock:
            self._promises.begin(key, {id_: self.files.size(id_) for id_ in ids})

    def reserve(self, key: str, bytes_: int, claim: Claim | None = None) -> Collected:
        """Promise space to a fetch that has begun, evicting what must go; returns what went.

        Raises NoSpace with the shortfall, and then evicts nothing, unless what it evicted made less
        free than it should because blocks are shared.
        """
        claim = claim or Claim(bytes_)
        lacking = claim.unwritten(bytes_)
        with self._lock:
            if self._evictor.inodes_short():
                self.collect()
            self._evictor.check_inodes(key)
            over_quota = self._evictor.over_quota(claim)
            over_share = self._evictor.over_share(bytes_, claim)
            freed = self._free(key, bytes_, lacking)
            evicted = Collected([], freed) + self._evictor.drop(over_quota, "quota")
            evicted += self._evictor.drop(over_share, "prefetch_share")
            evicted += self._evictor.make_room(key, bytes_, lacking, freed=evicted.bytes_freed > 0)
            self._promises.reserve(key, bytes_, claim)
            return evicted

    def end(self, key: str) -> None:
        """The fetch is over, well or not: its promises are void, what stayed only for it goes."""
        with self._lock:
            ids = self._promises.end(key)
            kept = self._promises.kept()
            with suppress(DiskError):  # what stays is collected later
                self.files.collect(id_ for id_ in ids if id_ not in kept)

    def settle(self, key: str) -> None:
        """The space is taken on the disk now."""
        with self._lock:
            self._promises.settle(key)

    def publish(self, snapshot: Snapshot, staged: Mapping[str, Path], papers: Papers) -> None:
        """Make a snapshot of staged files, by id, and of files that are here already."""
        with self._lock:
            for id_, path in staged.items():
                self.files.adopt(path, id_)
            self._snapshots.publish(snapshot, papers)
            self._known[snapshot.key] = snapshot
            self._ledger.touch(snapshot.key)
            self.end(snapshot.key)
        self.on_published(snapshot.key)

    def drop_partial(self, key: str) -> None:
        """Remove what was staged for a snapshot."""
        shutil.rmtree(self.partial(key), ignore_errors=True)

    # Holding.

    def lease(self, id_: str, key: str, owner: Owner) -> Lease:
        """Hold a snapshot; taking the same lease again changes nothing. Raises InUse, NoSuchModel.

        When this returns the lease is durable.
        """
        with self._lock:
            self.snapshot(key)
            held = self._holds.leases.held.get(id_)
            if held is not None:
                if held.key != key:
                    raise InUse(f"lease {id_}: is on another model, {held.key}")
                return held
            lease = Lease(id_, key, owner, time.time())
            self._holds.leases.put(id_, lease)
            self._ledger.touch(key)
            _log.info("leased", extra={**about(self._known[key]), "lease": id_})
            return lease

    def release(self, id_: str) -> None:
        """Let go. Raises NoSuchLease."""
        with self._lock:
            lease = self._holds.leases.held.get(id_)
            if lease is None or not self._holds.leases.drop(id_):
                raise NoSuchLease(f"{id_}: no such lease on this node")
            held = self._known.get(lease.key)  # it may be in quarantine
            _log.info(
                "released", extra={**(about(held) if held else {"key": lease.key}), "lease": id_}
            )

    def leases(self) -> list[Lease]:
        """Return all leases."""
        with self._lock:
            return list(self._holds.leases.held.values())

    def pin(self, key: str, *, until: float = 0.0, reason: str = "") -> Pin:
        """Keep a snapshot whatever happens, or until a time; one not here is kept when it comes."""
        with self._lock:
            pin = Pin(key, time.time(), until, reason)
            self._holds.pins.put(key, pin)
            return pin

    def unpin(self, key: str) -> bool:
        """Stop keeping; returns whether it was pinned."""
        with self._lock:
            return self._holds.pins.drop(key)

    def pins(self) -> list[Pin]:
        """Return the pins that count now."""
        with self._lock:
            return [pin for pin in self._holds.pins.held.values() if pin.holds(time.time())]

    # Going out.

    def remove(self, key: str) -> int:
        """Remove a snapshot nobody holds; returns the bytes freed. Raises InUse, NoSuchModel."""
        with self._lock:
            snapshot = self.snapshot(key)
            holds = self._holds.on(key)
            if holds:
                names = ", ".join(
                    f"lease {one.id}" if isinstance(one, Lease) else "a pin" for one in holds[:3]
                )
                raise InUse(
                    f"{snapshot.reference}: held by {names}", hint="unmount, or unpin, first"
                )
            return self._drop(snapshot, "removed")

    def want(self, want: Want) -> None:
        """Remember that a model is to come, over restarts."""
        with self._lock:
            self._wants.put(want.key, want)

    def unwant(self, key: str) -> bool:
        """Forget it; returns whether it was wanted."""
        with self._lock:
            return key in self._wants.held and self._wants.drop(key)

    def wanted(self, key: str) -> bool:
        """Whether a model is to come."""
        with self._lock:
            return key in self._wants.held

    def wants(self) -> list[Want]:
        """Return the models that are to come."""
        with self._lock:
            return list(self._wants.held.values())

    def collect(self, needed: int = 0) -> Collected:
        """Remove files and staging areas that nothing needs; then evict until `needed` are free."""
        with self._lock:
            self._holds.drop_expired()
            self._drop_quarantined()
            orphans = [id_ for id_, status in self.files.all() if status.st_nlink == 1]
            kept = self._promises.kept()
            freed = self.files.collect(id_ for id_ in orphans if id_ not in kept)
            for area in self._root.partial("").iterdir():
                wanted = area.name in self._wants.held or _recent(area)
                # A crash may come between the name of a snapshot and the end of its fetch.
                if area.name not in self._promises and (area.name in self._known or not wanted):
                    freed += _size(area)
                    self.drop_partial(area.name)
            if freed >= needed:
                return Collected([], freed)
            return Collected([], freed) + self._evictor.evict(needed - freed, "disk")

    def tidy(self) -> Collected:
        """Make room where others have taken it: a full cache must never cause DiskPressure."""
        with self._lock:
            missing = -self._evictor.room()
            if missing <= 0:
                return Collected()
            return self.collect(missing + int(self.disk().total * self._limits.slack))

    def refuse(self, digest: str, reason: str) -> list[str]:
        """Show no snapshot of this artifact any more, and remember why; returns their keys."""
        with self._lock:
            refusal = Refusal(digest, reason, time.time())
            self._refused.put(digest.replace(":", "-"), refusal)
            self.counts.layers.add("wrong")
            _log.error("artifact refused", extra={"digest": digest, "reason": reason})
            hit = [one for one in self._known.values() if one.digest == digest]
            for one in hit:
                self._set_aside(one)
            return [one.key for one in hit]

    def check_refused(self, digest: str, name: str) -> None:
        """Raise Refused for an artifact that was found to lie."""
        found = self._refused.held.get(digest.replace(":", "-"))
        if found is not None:
            raise Refused(
                f"{name}: {found.reason}",
                hint="pack and push it again, from a machine that you trust",
            )

    def quarantine(self, ids: Collection[str]) -> list[str]:
        """Stop showing every snapshot with one of these files; returns their keys.

        Whoever has one mounted keeps it; its lease holds the copy that is fetched again.
        """
        with self._lock:
            hit = [one for one in self._known.values() if one.ids & set(ids)]
            for one in hit:
                self._set_aside(one)
            for id_ in ids:
                self.files.forget(id_)
            return [one.key for one in hit]

    def close(self) -> None:
        """Let another process have the directory."""
        self._ledger.close()
        self._root.close()

    def _free(self, key: str, bytes_: int, lacking: int) -> int:
        """Remove what nothing needs, if there is not room for all; raises NoSpace if never."""
        if self._evictor.missing(bytes_, lacking) <= 0:
            return 0
        freed = self.collect().bytes_freed
        self._evictor.check(key, self._evictor.lasting(bytes_, lacking, freed=freed > 0))
        return freed

    def _drop(self, snapshot: Snapshot, reason: str) -> int:
        try:
            self._snapshots.remove(snapshot.key)
        finally:
            # What a read-only disk still has can still be mounted.
            if not os.path.lexists(self._snapshots.tree(snapshot.key)):
                del self._known[snapshot.key]
        kept = self._promises.kept()
        freed = self.files.collect(id_ for id_ in snapshot.ids if id_ not in kept)
        self._ledger.gone(snapshot.key)
        if reason != "removed":
            self.counts.evictions.add(reason)
        words = "removed" if reason == "removed" else "evicted"
        _log.info(words, extra={**about(snapshot), "reason": reason, "bytes_freed": freed})
        return freed

    def _set_aside(self, snapshot: Snapshot) -> None:
        del self._known[snapshot.key]
        aside = self._root.quarantine / f"{snapshot.key}-{time.time_ns()}"
        self._snapshots.move(snapshot.key, aside)
        _log.error("set aside: not shown any more", extra=about(snapshot))

    def _drop_quarantined(self) -> None:
        leased = {lease.key for lease in self._holds.leases.held.values()}
        for tree in self._root.quarantine.iterdir():
            if tree.name.partition("-")[0] not in leased:
                shutil.rmtree(tree, ignore_errors=True)


_PARTIAL_SECONDS = 7 * 24 * 3600.0


def _recent(area: Path) -> bool:
    return time.time() - area.stat().st_mtime < _PARTIAL_SECONDS


def _size(area: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in area.rglob("*") if path.is_file())
