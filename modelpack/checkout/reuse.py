"""Chunks that are already on this machine: found in other files, verified, copied."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from modelpack.chunks.table import TableCache
from modelpack.spec.digest import CHUNK_HASHERS
from modelpack.spec.errors import BadSource
from modelpack.transfer.crew import work
from modelpack.transfer.piece import Part, Sink
from modelpack.transfer.stop import Stop


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a file on this machine."""

    path: Path
    offset: int
    length: int


class Local:
    """Chunks in files of this machine, by digest. Filled first, then read from many threads."""

    def __init__(self, wanted: Callable[[bytes], bool], tables: TableCache) -> None:
        self._wanted = wanted
        self._tables = tables
        self._places: dict[bytes, Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add_files(self, files: Iterable[Path], *, workers: int) -> None:
        """Look for wanted chunks in these files; what cannot be read is no help and no harm."""

        def add(path: Path) -> None:
            try:
                table = self._tables.of(path, path.name)
            except (OSError, BadSource):
                return
            offsets = accumulate(table.lengths, initial=0)
            for number, (offset, length) in enumerate(zip(offsets, table.lengths, strict=False)):
                self.add(table.digest(number), Place(path, offset, length))

        work(files, add, workers=workers)

    def add(self, digest: bytes, place: Place) -> None:
        """Note where a chunk can be found, if anybody wants it."""
        if self._wanted(digest):
            self._places.setdefault(digest, place)

    def copy(
        self, parts: Iterable[Part], sink: Sink, *, workers: int, stop: Stop | None = None
    ) -> int:
        """Complete the parts that are found here; returns their bytes.

        Every copy is hashed on its way: a file that changed since it was looked at, or a record
        that was wrong, costs a fetch and nothing else.
        """
        copied: list[int] = []

        def copy(part: Part) -> None:
            place = self._places.get(part.digest)
            data = _read(place, part.length) if place else None
            if data is None:
                return
            hasher = CHUNK_HASHERS[self._tables.algorithm]()
            hasher.update(data)
            if hasher.digest() == part.digest:
                sink.write(part.file, part.offset, data)
                sink.complete(part)
                copied.append(part.length)

        work(parts, copy, workers=workers, stop=stop)
        return sum(copied)


def files_below(directories: Iterable[Path]) -> Iterator[Path]:
    """Yield regular files below the directories (or the files given), following links to files."""
    for directory in directories:
        if directory.is_file():
            yield directory
        for parent, _, names in os.walk(directory):
            for name in names:
                path = Path(parent, name)
                if path.is_file():
                    yield path


def _read(place: Place, length: int) -> bytes | None:
    if place.length != length:
        return None
    try:
        fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.pread(fd, length, place.offset)
    except OSError:
        return None
    finally:
        os.close(fd)
    return data if len(data) == length else None
