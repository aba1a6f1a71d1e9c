"""What goes when room is needed: the pure rules of `space` applied to what the store has."""

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cache_daemon.api.errors import NoSpace
from cache_daemon.api.values import Snapshot
from cache_daemon.space.evict import Candidate, choose
from cache_daemon.space.room import Disk, Limits, inodes_short, room
from cache_daemon.store.holds import Holds
from cache_daemon.store.ledger import Ledger, Usage
from cache_daemon.store.promises import Claim, Promises
from modelpack.disk.errors import disk_errors
from modelpack.disk.space import once_freed


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed: snapshots by key, bytes in all."""

    snapshots: list[str] = field(default_factory=list)
    bytes_freed: int = 0

    def __add__(self, other: "Collected") -> "Collected":
        """Return both together."""
        return Collected([*self.snapshots, *other.snapshots], self.bytes_freed + other.bytes_freed)


@dataclass(frozen=True, slots=True)
class Evictor:
    """Looks at the store's own tables; whoever calls has the store's lock."""

    _snapshots: Mapping[str, Snapshot]
    _holds: Holds
    _ledger: Ledger
    _promises: Promises
    _limits: Limits
    _disk: Callable[[], Disk]
    _drop: Callable[[Snapshot, str], int]

    def used(self) -> int:
        """Return the bytes of all files; a shared file counts once.

        A file that stays for a fetch counts, too, when the snapshot that brought it has gone.
        """
        sizes = self._promises.sizes()
        sizes |= {file.id: file.size for one in self._snapshots.values() for file in one.files}
        return sum(sizes.values())

    def held(self) -> int:
        """Return the bytes of the files that leases and pins keep."""
        held = [one for one in self._snapshots.values() if self._holds.on(one.key)]
        return sum({file.id: file.size for one in held for file in one.files}.values())

    def room(self) -> int:
        """Return how many bytes more may be promised; negative where it is too much already."""
        used = self.used() + self._promises.reserved
        return room(self._disk(), used, self._promises.unwritten, self._limits)

    def missing(self, bytes_: int, lacking: int) -> int:
        """Return how many bytes are too few for a promise; `lacking` are not written yet."""
        used = self.used() + self._promises.reserved
        unwritten = self._promises.unwritten - (bytes_ - lacking)
        return bytes_ - room(self._disk(), used, unwritten, self._limits)

    def lasting(self, bytes_: int, lacking: int, *, freed: bool) -> int:
        """Return what `missing` says when the disk has noticed what was freed just now."""

        def missing() -> int:
            return self.missing(bytes_, lacking)

        return once_freed(missing) if freed else missing()

    def make_room(self, what: str, bytes_: int, lacking: int, *, freed: bool) -> Collected:
        """Remove models that nobody holds until there is room for a promise. Raises NoSpace."""
        done = Collected()
        # More than once where files share blocks: they make less free than their sizes say.
        while (left := self.lasting(bytes_, lacking, freed=freed)) > 0:
            self.check(what, left)
            done += self.evict(left, "space")
            freed = True
        return done

    def inodes_short(self) -> int:
        """Return how many inodes are too few."""
        return inodes_short(self._disk(), self._limits)

    def check_inodes(self, what: str) -> None:
        """Raise NoSpace where inodes are short: models have few, evicting all would help little."""
        if short := self.inodes_short():
            disk = self._disk()
            raise NoSpace(
                f"{what}: {short} inodes too few on the disk: {disk.inodes_free} of {disk.inodes} "
                f"are free, {self._limits.inodes_free:.0%} are to stay free",
                shortfall=0,
                hint="somebody has very many small files there: remove some",
            )

    def capacity(self) -> int:
        """Return the bytes that models may take now, those that are here and promised included."""
        return self.used() + self._promises.reserved + max(0, self.room())

    def links(self) -> dict[str, int]:
        """Return how many snapshots, and fetches under way, use each file."""
        count: dict[str, int] = {}
        for ids in [one.ids for one in self._snapshots.values()] + self._promises.files():
            for id_ in ids:
                count[id_] = count.get(id_, 0) + 1
        return count

    def over_quota(self, claim: Claim) -> list[Snapshot]:
        """Return what must go for a namespace's quota: what it used longest ago. Raises NoSpace."""
        quota = self._limits.quota(claim.namespace)
        if not quota:
            return []
        own = [one for one in self._snapshots.values() if one.namespace == claim.namespace]
        charged = sum(one.bytes_total for one in own) + self._promises.claimed(claim.namespace)
        usage = self._ledger.usage()
        free = sorted(
            (one for one in own if not self._holds.on(one.key)),
            key=lambda one: usage.get(one.key, Usage()).last,
        )
        going: list[Snapshot] = []
        while free and charged + claim.bytes_total > quota:
            going.append(free.pop(0))
            charged -= going[-1].bytes_total
        over = charged + claim.bytes_total - quota
        if over > 0:
            raise NoSpace(
                f"namespace {claim.namespace!r}: {over} bytes too few, its quota is {quota}",
                shortfall=over,
                hint="release or unpin models of this namespace, or give it a larger quota",
                limit="quota",
            )
        return going

    def over_share(self, bytes_: int, claim: Claim) -> list[Snapshot]:
        """Return what must go for the share of prefetches: others that nobody has used.

        Raises NoSpace.
        """
        if not claim.prefetch or self._limits.prefetch_share >= 1:
            return []
        usage = self._ledger.usage()
        idle = [one for one in self._free() if usage.get(one.key, Usage()).uses <= 1]
        capacity = self.used() + max(0, self.room())
        allowed = int(capacity * self._limits.prefetch_share)
        taken = sum(one.bytes_total for one in idle) + self._promises.prefetching()
        over = taken + bytes_ - allowed
        if over <= 0:
            return []
        if bytes_ > allowed - self._promises.prefetching():
            raise NoSpace(
                f"a prefetch of {bytes_} bytes: {over} too few, prefetches that nobody has used "
                f"may take {allowed}",
                shortfall=over,
                hint="ask for it with a pod, pin it, or raise --prefetch-share",
                limit="prefetch_share",
            )
        chosen, _ = choose(self._candidates(idle), self.links(), over)
        return [self._snapshots[one.key] for one in chosen]

    def check(self, what: str, missing: int) -> None:
        """Raise NoSpace if that many bytes cannot be made free, whatever goes."""
        free = self._free()
        _, freed = choose(self._candidates(free), self.links(), missing)
        if freed < missing:
            raise NoSpace(
                f"{what}: {missing - freed} bytes too few, after evicting all of {len(free)} "
                f"models that nobody holds ({freed} bytes)",
                shortfall=missing - freed,
                hint="release or unpin models, or give the cache more room",
            )

    def drop(self, snapshots: Collection[Snapshot], reason: str) -> Collected:
        """Remove these."""
        gone = [one for one in snapshots if one.key in self._snapshots]
        return Collected([one.key for one in gone], sum(self._drop(one, reason) for one in gone))

    def evict(self, needed: int, reason: str) -> Collected:
        """Remove models that nobody holds until so many bytes of files are, or none is left.

        That many are free then, unless files share blocks with others that stay.
        """
        chosen, _ = choose(self._candidates(self._free()), self.links(), needed)
        return self.drop([self._snapshots[one.key] for one in chosen], reason)

    def _free(self) -> list[Snapshot]:
        return [one for one in self._snapshots.values() if not self._holds.on(one.key)]

    def _candidates(self, snapshots: Collection[Snapshot]) -> list[Candidate]:
        usage = self._ledger.usage()
        now = time.time()
        return [_candidate(one, usage.get(one.key), now) for one in snapshots]


def _candidate(snapshot: Snapshot, usage: Usage | None, now: float) -> Candidate:
    files = {file.id: file.size for file in snapshot.files if file.id}
    usage = usage or Usage(last=snapshot.created)
    return Candidate(
        snapshot.key, files, usage.counts(now), max(0.1, snapshot.fetch_seconds),
        snapshot.bytes_fetched, usage.last,
    )  # fmt: skip


def disk_of(path: Path) -> Disk:
    """Return the state of the disk that a path is on."""
    with disk_errors("look at the disk of", path):
        status = os.statvfs(path)
    return Disk(
        status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize,
        status.f_files, status.f_favail,
    )  # fmt: skip
