"""A model while it arrives: which of its bytes are here and verified, for who reads along."""

from bisect import bisect_right
from collections.abc import Callable, Container
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Final, Protocol

from cache_daemon.api.values import Priority
from cache_daemon.fetch.request import Wanted
from modelpack.checkout.staging import Staging
from modelpack.spec.progress import Reporter

_RUN: Final = 64 << 20  # bytes that are looked ahead at a time


class Listener(Reporter, Protocol):
    """Is told how a fetch goes; see also Reporter."""

    @property
    def priority(self) -> Priority:
        """How urgent it is now."""

    def durations(self) -> dict[str, float]:
        """Return the seconds that each phase took so far; waiting in the queue is the first."""

    def arriving(self, model: "Arriving", /) -> None:
        """From now on bytes can be read while they come."""


class Arriving:
    """An indexed model on its way. Thread-safe."""

    def __init__(
        self,
        wanted: Wanted,
        staging: Staging,
        here: Container[str],
        stored: Callable[[str], Path],
    ) -> None:
        """`here` are the ids of files that need not come, `stored` says where files are kept."""
        index = wanted.artifact.index
        assert index is not None  # noqa: S101  # who makes it has one
        self._index = index
        self._numbers = {index.files[number].path: number for number in wanted.files}
        self._ids = {number: wanted.id_of(number) for number in wanted.files}
        self._here = here
        self._staging = staging
        self._stored = stored
        self._starts = lru_cache(maxsize=16)(self._starts_of)

    def has_file(self, path: str) -> bool:
        """Whether the file is one of those that come."""
        return path in self._numbers

    def ready(self, path: str, offset: int) -> tuple[Path, int]:
        """Return where a file is and how many of its bytes from `offset` on are verified."""
        number = self._numbers[path]
        file = self._index.files[number]
        id_ = self._ids[number]
        if id_ in self._here:
            return self._stored(id_), file.size - offset
        starts = self._starts(number)
        chunk = bisect_right(starts, offset) - 1
        while chunk < file.chunks and starts[chunk] < offset + _RUN:
            if self._staging.missing(file.first + chunk):
                break
            chunk += 1
        return self._staging.path(number), max(0, starts[min(chunk, file.chunks)] - offset)

    def settled(self, path: str) -> Path:
        """Return where a file is when the model is here."""
        return self._stored(self._ids[self._numbers[path]])

    def _starts_of(self, number: int) -> list[int]:
        file = self._index.files[number]
        lengths = self._index.lengths[file.first : file.first + file.chunks]
        return list(accumulate(lengths, initial=0))
