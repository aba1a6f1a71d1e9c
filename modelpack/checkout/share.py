"""Chunks whose blocks are shared with the file in which they were found, instead of copied.

A file system shares whole blocks. Chunks end anywhere, so what is shared is the inside of a run of
chunks that are neighbours both here and there; its two edges are copied.
"""

import errno
import os
import threading
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelpack.disk.extents import block_size, clone_range
from modelpack.transfer.piece import Part

# What a file system says that cannot share at all; anything else may be about this one range.
_CANNOT: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a file on this machine."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Run:
    """Adjacent bytes of staged file `file`, and the adjacent ones that are to be the same."""

    file: int
    offset: int
    source: Place

    def followed_by(self, file: int, offset: int, place: Place) -> bool:
        """Whether these bytes go on where the run ends, here and there."""
        source = self.source
        return (
            file == self.file
            and offset == self.offset + source.length
            and place.offset == source.offset + source.length
            and place.path == source.path
        )

    def inside(self, block: int) -> tuple[int, int]:
        """Return start and end, in the staged file, of the whole blocks that can be shared."""
        if (self.offset - self.source.offset) % block:
            return (0, 0)
        end = (self.offset + self.source.length) // block * block
        start = -(-self.offset // block) * block
        return (start, end) if start < end else (0, 0)


def runs(parts: Iterable[Part], find: Callable[[Part], Place | None]) -> Iterator[Run]:
    """Put neighbours together; `parts` come in order of their files, and of offsets in those."""
    run: Run | None = None
    for part in parts:
        place = find(part)
        if place is None:
            continue
        if run and run.followed_by(part.file, part.offset, place):
            source = run.source
            longer = Place(source.path, source.offset, source.length + place.length)
            run = Run(run.file, run.offset, longer)
            continue
        if run:
            yield run
        run = Run(part.file, part.offset, place)
    if run:
        yield run


class Shared:
    """Ranges of staged files that are blocks of other files. Made by many threads, then read.

    They count for nothing by that: who completes a chunk has hashed it where it is now.
    """

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        self._unable: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def share(self, run: Run, target: Path) -> None:
        """Share what can be shared of a run; the rest, perhaps all of it, stays as it was."""
        try:
            source = os.open(run.source.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self._share(run, source, fd)
            finally:
                os.close(fd)
        except OSError:
            return  # who copies instead meets what is wrong with the disk, and says it
        finally:
            os.close(source)

    def gaps(self, file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of what is not shared of a range of a staged file."""
        ranges = self._ranges.get(file, [])
        first = max(0, bisect_right(ranges, (start, start)) - 1)
        for number in range(first, len(ranges)):
            low, high = ranges[number]
            if low >= end:
                break
            if start < low:
                yield start, low
            start = max(start, high)
        if start < end:
            yield start, end

    def _share(self, run: Run, source: int, fd: int) -> None:
        devices = os.fstat(source).st_dev, os.fstat(fd).st_dev
        start, end = run.inside(block_size(fd))
        if start == end or devices in self._unable:
            return
        try:
            clone_range(source, run.source.offset + start - run.offset, end - start, fd, start)
        except OSError as error:
            if error.errno in _CANNOT:
                self._unable.add(devices)  # once is enough: the next fetch asks again
            raise
        with self._lock:
            insort(self._ranges.setdefault(run.file, []), (start, end))
