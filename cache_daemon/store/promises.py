"""What the store has promised to fetches that are under way: space, and files to link to."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Claim:
    """For whom space is wanted: the size of the whole model in bytes, who asked, how urgently.

    `lacking` is how many of the bytes to reserve are not on the disk yet, if that is fewer: others
    are shared with other files, or an earlier try has left them.
    """

    bytes_total: int = 0
    namespace: str = ""
    prefetch: bool = False
    lacking: int | None = None

    def unwritten(self, bytes_: int) -> int:
        """Return how many of so many bytes are not on the disk yet."""
        return bytes_ if self.lacking is None else self.lacking


@dataclass(slots=True)
class Promises:
    """By the key of the snapshot. Whoever calls has the store's lock."""

    _reserved: dict[str, int] = field(default_factory=dict)
    _unwritten: dict[str, int] = field(default_factory=dict)
    _files: dict[str, Mapping[str, int]] = field(default_factory=dict)
    _claims: dict[str, Claim] = field(default_factory=dict)

    def begin(self, key: str, files: Mapping[str, int]) -> None:
        """A fetch will link to these files: they stay. With the bytes of those that are here."""
        self._files[key] = files

    def reserve(self, key: str, bytes_: int, claim: Claim) -> None:
        """A fetch will write so many bytes."""
        self._reserved[key], self._unwritten[key] = bytes_, claim.unwritten(bytes_)
        self._claims[key] = claim

    def settle(self, key: str) -> None:
        """What was promised is on the disk now."""
        self._unwritten.pop(key, None)

    def end(self, key: str) -> frozenset[str]:
        """The fetch is over; returns the files that stayed for it."""
        for promised in (self._reserved, self._unwritten, self._claims):
            promised.pop(key, None)
        return frozenset(self._files.pop(key, ()))

    def __contains__(self, key: str) -> bool:
        return key in self._files

    @property
    def reserved(self) -> int:
        """Bytes of all fetches under way."""
        return sum(self._reserved.values())

    @property
    def unwritten(self) -> int:
        """Those of them that are not on the disk yet."""
        return sum(self._unwritten.values())

    def files(self) -> list[frozenset[str]]:
        """Return the files that stay, per fetch."""
        return [frozenset(files) for files in self._files.values()]

    def sizes(self) -> dict[str, int]:
        """Return the bytes of the files that stay and were here when the fetches began."""
        return {id_: size for files in self._files.values() for id_, size in files.items() if size}

    def kept(self) -> frozenset[str]:
        """Return all files that stay."""
        return frozenset[str]().union(*self._files.values())

    def claimed(self, namespace: str) -> int:
        """Return the bytes that a namespace is waiting for."""
        return sum(one.bytes_total for one in self._claims.values() if one.namespace == namespace)

    def prefetching(self) -> int:
        """Return the bytes that are on their way without anybody waiting for them."""
        return sum(self._reserved[key] for key, one in self._claims.items() if one.prefetch)
