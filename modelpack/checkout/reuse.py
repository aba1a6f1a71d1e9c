"""Chunks that are already on this machine: found in other files, verified, copied."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from modelpack.checkout.share import Place, Shared, runs
from modelpack.chunks.table import TableCache
from modelpack.spec.digest import CHUNK_HASHERS
from modelpack.spec.errors import BadSource
from modelpack.transfer.crew import work
from modelpack.transfer.piece import Part, Sink
from modelpack.transfer.stop import Stop


class Files(Sink, Protocol):
    """Staged files, which can be read back."""

    def path(self, file: int) -> Path:
        """Return the path of staged file `file`."""


@dataclass(frozen=True, slots=True)
class Copied:
    """Bytes that are in place now, and how many of them are blocks that another file has, too."""

    bytes_: int = 0
    cloned: int = 0

    def __add__(self, other: "Copied") -> "Copied":
        return Copied(self.bytes_ + other.bytes_, self.cloned + other.cloned)


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

    def share(
        self, parts: Iterable[Part], sink: Files, *, workers: int, stop: Stop | None = None
    ) -> Shared:
        """Let what can be shared of the parts be the blocks in which they are found here.

        Nothing is verified yet, so nothing is complete: `copy` is to follow.
        """
        shared = Shared()
        found = runs(parts, self._place)
        work(found, lambda run: shared.share(run, sink.path(run.file)), workers=workers, stop=stop)
        return shared

    def copy(
        self,
        parts: Iterable[Part],
        sink: Files,
        shared: Shared,
        *,
        workers: int,
        stop: Stop | None = None,
    ) -> Copied:
        """Complete the parts that are found here; returns their bytes.

        Every copy is hashed on its way, and what is shared where it is now: a file that changed
        since it was looked at, or a record that was wrong, costs a fetch and nothing else.
        """
        lengths: list[int] = []
        cloned: list[int] = []

        def copy(part: Part) -> None:
            place = self._place(part)
            if place is None:
                return
            gaps = list(shared.gaps(part.file, part.offset, part.offset + part.length))
            lacking = sum(end - start for start, end in gaps)
            if lacking == part.length:
                data = self.verified(place, part.digest)
                if data is None:
                    return
                sink.write(part.file, part.offset, data)
            else:
                for start, end in gaps:
                    edge = Place(place.path, place.offset + start - part.offset, end - start)
                    sink.write(part.file, start, _read(edge) or b"")
                here = Place(sink.path(part.file), part.offset, part.length)
                if self.verified(here, part.digest) is None:
                    return
            sink.complete(part)
            lengths.append(part.length)
            cloned.append(part.length - lacking)

        work(parts, copy, workers=workers, stop=stop)
        return Copied(sum(lengths), sum(cloned))

    def verified(self, place: Place, digest: bytes) -> bytes | None:
        """Return the bytes of a chunk if it is there and has this digest."""
        data = _read(place)
        if data is None:
            return None
        hasher = CHUNK_HASHERS[self._tables.algorithm]()
        hasher.update(data)
        return data if hasher.digest() == digest else None

    def _place(self, part: Part) -> Place | None:
        place = self._places.get(part.digest)
        return place if place and place.length == part.length else None


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


def _read(place: Place) -> bytes | None:
    try:
        fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.pread(fd, place.length, place.offset)
    except OSError:
        return None
    finally:
        os.close(fd)
    return data if len(data) == place.length else None
