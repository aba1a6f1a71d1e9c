"""What goes when room is needed: the pure rules of `space` applied to what the store has."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cache_daemon.api.errors import NoSpace
from cache_daemon.api.values import Snapshot
from cache_daemon.space.evict import Candidate, choose, freed_by, worth
from cache_daemon.space.room import Disk, Limits, room
from cache_daemon.store.holds import Holds
from cache_daemon.store.ledger import Ledger, Usage
from cache_daemon.store.promises import Claim, Promises
from modelpack.disk.errors import disk_errors


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
        """Return the bytes of all files; a shared file counts once."""
        sizes = {file.id: file.size for one in self._snapshots.values() for file in one.files}
        return sum(sizes.values())

    def held(self) -> int:
        """Return the bytes of the files that leases and pins keep."""
        held = [one for one in self._snapshots.values() if self._holds.on(one.key)]
        return sum({file.id: file.size for one in held for file in one.files}.values())

    def room(self) -> int:
        """Return how many bytes more may be promised; negative where it is too much already."""
        used = self.used() + self._promises.reserved
        return room(self._disk(), used, self._promises.unwritten, self._limits)

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

    def within_quota(self, claim: Claim) -> Collected:
        """Make room in the namespace's quota; what it used longest ago goes. Raises NoSpace."""
        quota = self._limits.quota(claim.namespace)
        if not quota:
            return Collected()
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
        return Collected([one.key for one in going], sum(self._drop(one, "quota") for one in going))

    def within_share(self, bytes_: int, claim: Claim) -> Collected:
        """Prefetches replace prefetches that nobody has used, rather than everything else."""
        if not claim.prefetch or self._limits.prefetch_share >= 1:
            return Collected()
        usage = self._ledger.usage()
        idle = [
            one
            for one in self._snapshots.values()
            if usage.get(one.key, Usage()).uses <= 1 and not self._holds.on(one.key)
        ]
        capacity = self.used() + max(0, self.room())
        allowed = int(capacity * self._limits.prefetch_share)
        taken = sum(one.bytes_total for one in idle) + self._promises.prefetching()
        over = taken + bytes_ - allowed
        if over <= 0:
            return Collected()
        if bytes_ > allowed - self._promises.prefetching():
            raise NoSpace(
                f"a prefetch of {bytes_} bytes: {over} too few, prefetches that nobody has used "
                f"may take {allowed}",
                shortfall=over,
                hint="ask for it with a pod, pin it, or raise --prefetch-share",
                limit="prefetch_share",
            )
        return self.evict(over, "prefetch_share", partially=True, among=idle)

    def evict(
        self,
        needed: int,
        reason: str,
        *,
        partially: bool = False,
        what: str = "",
        among: Collection[Snapshot] | None = None,
    ) -> Collected:
        """Remove models that nobody holds until so many bytes are free.

        Raises NoSpace if that cannot be, and then removes nothing; `partially` takes less, too.
        """
        usage = self._ledger.usage()
        every = self._snapshots.values() if among is None else among
        free = [one for one in every if not self._holds.on(one.key)]
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
        bytes_freed = 0
        for candidate in chosen:
            value = worth(candidate, freed_by(candidate, links))
            bytes_freed += self._drop(self._snapshots[candidate.key], reason)
            self._ledger.evicted(candidate.key, value)
        return Collected([one.key for one in chosen], bytes_freed)

    def _candidate(self, snapshot: Snapshot, usage: Usage) -> Candidate:
        files = {file.id: file.size for file in snapshot.files if file.id}
        return Candidate(
            snapshot.key, files, usage.uses, max(0.1, snapshot.fetch_seconds), usage.clock,
            usage.last,
        )  # fmt: skip


def disk_of(path: Path) -> Disk:
    """Return the state of the disk that a path is on."""
    with disk_errors("look at the disk of", path):
        status = os.statvfs(path)
    return Disk(
        status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize,
        status.f_files, status.f_favail,
    )  # fmt: skip
