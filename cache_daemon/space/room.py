"""How many bytes the cache may take on a disk that it shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Disk:
    """What statvfs says, in bytes and inodes."""

    total: int
    free: int
    inodes: int
    inodes_free: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Where the cache stops.

    kubelet evicts pods at 10 % free (nodefs) or 15 % (imagefs) and removes images at 85 % used: a
    cache must never be the reason. `keep_free` is a share of the disk that stays free whatever
    happens, `most` an absolute bound in bytes, 0 for none. Where others take that share, models go
    until `slack` more than it is free.

    `namespaces` are the bytes that the models first asked for by a namespace may have in all, `*`
    for those not named, 0 for no bound. Models that were prefetched and never used have at most
    `prefetch_share` of the room.
    """

    keep_free: float = 0.18
    most: int = 0
    inodes_free: float = 0.07
    slack: float = 0.02
    prefetch_share: float = 1.0
    namespaces: Mapping[str, int] = field(default_factory=dict)

    def quota(self, namespace: str) -> int:
        """Return the bytes that a namespace may have; 0 for no bound."""
        return self.namespaces.get(namespace, self.namespaces.get("*", 0))


def room(disk: Disk, used: int, unwritten: int, limits: Limits) -> int:
    """Return how many bytes more may be taken; negative where too much is taken already.

    `used` is what the cache holds and is fetching, `unwritten` what of it is not on the disk yet.
    """
    by_disk = disk.free - int(disk.total * limits.keep_free) - unwritten
    if inodes_short(disk, limits):
        by_disk = min(by_disk, 0)
    return min(by_disk, limits.most - used) if limits.most else by_disk


def inodes_short(disk: Disk, limits: Limits) -> int:
    """Return how many inodes are too few; 0 where enough are free, or where nobody counts them."""
    return max(0, int(disk.inodes * limits.inodes_free) - disk.inodes_free) if disk.inodes else 0
