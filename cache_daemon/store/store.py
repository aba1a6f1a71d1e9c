"""The store: what the daemon keeps, under one lock. No network here."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cache_daemon.api.errors import InUse, NoSpace, NoSuchLease, NoSuchModel
from cache_daemon.api.values import Lease, Owner, Pin, Snapshot
from cache_daemon.space.evict import Candidate, choose, freed_by, worth
from cache_daemon.space.room import Disk, Limits, room, room_on_disk
from cache_daemon.store.files import Files
from cache_daemon.store.holds import Holds
from cache_daemon.store.ledger import Ledger, Usage
from cache_daemon.store.root import Root
from cache_daemon.store.snapshots import Snapshots
from modelpack.disk.errors import disk_errors

Evicted = Callable[[Snapshot, int], None]


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed: snapshots by key, bytes in all."""

    snapshots: list[str] = field(default_factory=list)
    bytes_freed: int = 0


class Store:
    """One node's models. Thread-safe; every method leaves the disk correct at any instant."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        """Open and check; raises BadStore, DiskError. Cost: one stat per file."""
        self._root = Root(path)
        self._limits = limits or Limits()
        self._lock = threading.RLock()
        self.files = Files(self._root.files)
        self._snapshots = Snapshots(self._root.snapshots, self.files)
        self._known = {one.key: one for one in self._snapshots.load()}
        self._holds = Holds(self._root.leases, self._root.pins)
        self._ledger = Ledger(path / "ledger.sqlite")
        self._ledger.keep_only(self._known)
        self._reserved: dict[str, int] = {}  # bytes of each fetch under way
        self._unwritten: dict[str, int] = {}  # those of them that are not on the disk yet
        self._in_flight: dict[str, frozenset[str]] = {}  # files that fetches will link to
        self.on_evicted: Evicted = lambda _snapshot, _bytes: None

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

    def index(self, key: str) -> bytes | None:
        """Return the chunk index of a snapshot, if it has one."""
        return self._snapshots.index(key)

    def usage(self) -> Mapping[str, Usage]:
        """Return how snapshots were used."""
        return self._ledger.usage()

    def links(self) -> dict[str, int]:
        """Return how many snapshots, and fetches under way, use each file."""
        count: dict[str, int] = {}
        with self._lock:
            for ids in [one.ids for one in self._known.values()] + list(self._in_flight.values()):
                for id_ in ids:
                    count[id_] = count.get(id_, 0) + 1
        return count

    def unique_bytes(self, key: str) -> int:
        """Return the bytes that would be free without this snapshot."""
        return freed_by(self._candidate(self.snapshot(key), Usage()), self.links())

    def used(self) -> int:
        """Return the bytes of all files; a shared file counts once."""
        with self._lock:
            sizes = {file.id: file.size for one in self._known.values() for file in one.files}
        return sum(sizes.values())

    def disk(self) -> Disk:
        """Return the state of the disk."""
        with disk_errors("look at the disk of", self._root.path):
            status = os.statvfs(self._root.path)
        return Disk(
            status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize,
            status.f_files, status.f_favail,
        )  # fmt: skip

    # Coming in.

    def partial(self, key: str) -> Path:
        """Return the staging area of a fetch."""
        return self._root.partial(key)

    def begin(self, key: str, ids: Collection[str]) -> None:
        """A fetch begins that will link to these files: they stay, until `end`."""
        with self._lock:
            self._in_flight[key] = frozenset(ids)

    def reserve(self, key: str, bytes_: int, lacking: int | None = None) -> Collected:
        """Promise space to a fetch that has begun, evicting what must go; returns what went.

        `lacking` is how many of the bytes are not on the disk yet; the others are shared with other
        files, or an earlier try has left them. Raises NoSpace with the shortfall.
        """
        with self._lock:
            unwritten = bytes_ if lacking is None else lacking
            evicted = self._make_room(key, bytes_, unwritten)
            self._reserved[key], self._unwritten[key] = bytes_, unwritten
            return evicted

    def end(self, key: str) -> None:
        """The fetch is over, well or not: its promises are void."""
        with self._lock:
            for promises in (self._reserved, self._unwritten, self._in_flight):
                promises.pop(key, None)

    def settle(self, key: str) -> None:
        """The space is taken on the disk now."""
        with self._lock:
            self._unwritten.pop(key, None)

    def publish(self, snapshot: Snapshot, staged: Mapping[str, Path], index: bytes | None) -> None:
        """Make a snapshot of staged files, by id, and of files that are here already."""
        with self._lock:
            for id_, path in staged.items():
                self.files.adopt(path, id_)
            self._snapshots.publish(snapshot, index)
            self._known[snapshot.key] = snapshot
            self._ledger.touch(snapshot.key)
            self.end(snapshot.key)

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
            return lease

    def release(self, id_: str) -> None:
        """Let go. Raises NoSuchLease."""
        with self._lock:
            if not self._holds.leases.drop(id_):
                raise NoSuchLease(f"{id_}: no such lease on this node")

    def leases(self) -> list[Lease]:
        """Return all leases."""
        with self._lock:
            return list(self._holds.leases.held.values())

    def pin(self, key: str, *, until: float = 0.0, reason: str = "") -> Pin:
        """Keep a snapshot whatever happens, or until a time. Raises NoSuchModel."""
        with self._lock:
            self.snapshot(key)
            pin = Pin(key, time.time(), until, reason)
            self._holds.pins.put(key, pin)
            return pin

    def unpin(self, key: str) -> bool:
        """Stop keeping; returns whether it was pinned."""
        with self._lock:
            self.snapshot(key)
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
            return self._drop(snapshot)

    def collect(self, needed: int = 0) -> Collected:
        """Remove files and staging areas that nothing needs; then evict until `needed` are free."""
        with self._lock:
            self._holds_expired()
            self._drop_quarantined()
            orphans = [id_ for id_, status in self.files.all() if status.st_nlink == 1]
            in_flight = frozenset[str]().union(*self._in_flight.values())
            freed = self.files.collect(id_ for id_ in orphans if id_ not in in_flight)
            for area in self._root.partial("").iterdir():
                if area.name not in self._in_flight and not _recent(area):
                    freed += _size(area)
                    self.drop_partial(area.name)
            if freed >= needed:
                return Collected([], freed)
            evicted = self._evict(needed - freed, needed - freed, partially=True)
            return Collected(evicted.snapshots, evicted.bytes_freed + freed)

    def quarantine(self, ids: Collection[str]) -> list[str]:
        """Stop showing every snapshot with one of these files; returns their keys.

        Whoever has one mounted keeps it; its lease holds the copy that is fetched again.
        """
        with self._lock:
            hit = [one for one in self._known.values() if one.ids & set(ids)]
            for one in hit:
                del self._known[one.key]
                self._snapshots.move(one.key, self._root.quarantine / f"{one.key}-{time.time_ns()}")
            for id_ in ids:
                self.files.forget(id_)
            return [one.key for one in hit]

    def close(self) -> None:
        """Let another process have the directory."""
        self._ledger.close()
        self._root.close()

    def _make_room(self, key: str, bytes_: int, lacking: int) -> Collected:
        disk, unwritten = self.disk(), sum(self._unwritten.values()) - (bytes_ - lacking)
        used = self.used() + sum(self._reserved.values())
        missing = bytes_ - room(disk, used, unwritten, self._limits)
        on_disk = bytes_ - room_on_disk(disk, unwritten, self._limits)
        if missing <= 0:
            return Collected()
        freed = self.collect().bytes_freed
        if freed >= missing:
            return Collected([], freed)
        evicted = self._evict(missing - freed, on_disk - freed, partially=False, what=key)
        return Collected(evicted.snapshots, evicted.bytes_freed + freed)

    def _evict(self, needed: int, on_disk: int, *, partially: bool, what: str = "") -> Collected:
        usage = self._ledger.usage()
        free = [one for one in self._known.values() if not self._holds.on(one.key)]
        candidates = [self._candidate(one, usage.get(one.key, Usage())) for one in free]
        links = self.links()
        chosen, freed = choose(candidates, links, needed)
        if freed < needed and not partially:
            raise NoSpace(
                f"{what}: {needed - freed} bytes too few, after evicting all of {len(free)} models "
                f"that nobody holds ({freed} bytes)",
                shortfall=needed - freed,
                hint="release or unpin models, or give the cache more room",
            )
        gone: list[str] = []
        bytes_freed, before = 0, self.used()
        while chosen:
            for candidate in chosen:
                value = worth(candidate, freed_by(candidate, links))
                bytes_freed += self._drop(self._known[candidate.key])
                self._ledger.evicted(candidate.key, value)
                gone.append(candidate.key)
            # Files that share blocks make less free than their sizes: then more must go.
            left = max(needed - (before - self.used()), on_disk - bytes_freed)
            candidates = [one for one in candidates if one.key in self._known]
            links = self.links()
            chosen, _ = choose(candidates, links, left)
        return Collected(gone, bytes_freed)

    def _drop(self, snapshot: Snapshot) -> int:
        del self._known[snapshot.key]
        self._snapshots.remove(snapshot.key)
        in_flight = frozenset[str]().union(*self._in_flight.values())
        freed = self.files.collect(id_ for id_ in snapshot.ids if id_ not in in_flight)
        self.on_evicted(snapshot, freed)
        return freed

    def _candidate(self, snapshot: Snapshot, usage: Usage) -> Candidate:
        files = {file.id: file.size for file in snapshot.files if file.id}
        return Candidate(
            snapshot.key, files, usage.uses, max(0.1, snapshot.fetch_seconds), usage.clock,
            usage.last,
        )  # fmt: skip

    def _drop_quarantined(self) -> None:
        leased = {lease.key for lease in self._holds.leases.held.values()}
        for tree in self._root.quarantine.iterdir():
            if tree.name.partition("-")[0] not in leased:
                shutil.rmtree(tree, ignore_errors=True)

    def _holds_expired(self) -> None:
        now = time.time()
        for key in [k for k, pin in self._holds.pins.held.items() if not pin.holds(now)]:
            self._holds.pins.drop(key)


_PARTIAL_SECONDS = 7 * 24 * 3600.0


def _recent(area: Path) -> bool:
    return time.time() - area.stat().st_mtime < _PARTIAL_SECONDS


def _size(area: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in area.rglob("*") if path.is_file())
