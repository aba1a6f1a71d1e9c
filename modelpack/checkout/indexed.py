"""Pulling by chunks: what is missing is fetched, what is here already is copied."""

import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from modelpack.checkout.place import Staged, Target
from modelpack.checkout.reuse import Copied, Local
from modelpack.checkout.share import Place, Shared
from modelpack.checkout.staging import Staging
from modelpack.chunks.table import TableCache
from modelpack.disk.durable import sync
from modelpack.disk.errors import disk_errors
from modelpack.spec.errors import BadSource, DiskError, ProtocolViolation
from modelpack.spec.index import ChunkIndex
from modelpack.spec.manifest import Descriptor
from modelpack.spec.progress import Progress, Reporter
from modelpack.spec.source import BlobSource
from modelpack.transfer.crew import work
from modelpack.transfer.engine import Engine
from modelpack.transfer.piece import Part, Piece
from modelpack.transfer.plan import parts_of, pieces, side_by_side
from modelpack.transfer.stop import Stop

Finder = Callable[[Local], None]
Room = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes: received over the wire, and taken from files that were here.

    `cloned` of those that were taken are the same blocks on the disk, and cost nothing there.
    """

    received: int
    reused: int
    cloned: int = 0


@dataclass(frozen=True, slots=True)
class IndexedCheckout:
    """One artifact with a chunk index, on its way to a directory."""

    index: ChunkIndex
    layers: tuple[Descriptor, ...]
    tables: TableCache
    reporter: Reporter
    jobs: int
    stop: Stop = field(default_factory=Stop)

    def kept(self, files: Iterable[int], target: Target) -> set[int]:
        """Return those files that are in place already, byte for byte."""
        found: set[int] = set()
        paths = {number: target.path(self.index.files[number].path) for number in files}
        same_size = [n for n, path in paths.items() if _is_file(path, self.index.files[n].size)]
        bar = self.reporter.bar("checking files in place")
        bar.expect(sum(self.index.files[number].size for number in same_size))

        def compare(number: int) -> None:
            file = self.index.files[number]
            try:
                table = self.tables.of(paths[number], file.path)
            except (OSError, BadSource):
                return
            if table.digests == self.index.digests(file):
                found.add(number)
            bar.advance(file.size)

        work(same_size, compare, workers=self.jobs, stop=self.stop)
        return found

    def stage(
        self,
        files: Sequence[int],
        staging: Staging,
        source: BlobSource,
        find: Finder,
        room: Room = lambda _bytes: None,
    ) -> Moved:
        """Bring all chunks of the files into the staging area, verified and durable.

        `find` is asked where wanted chunks are on this machine; it may be wrong. `room` is told how
        many bytes it will take on the disk, before it takes any: what it raises ends it.
        """
        staging.forget(
            number
            for file in files
            if not staging.path(file).exists()
            for number in range(*_span(self.index, file))
        )
        self._recheck(files, staging)
        sizes = {number: self.index.files[number].size for number in files}
        staging.create(sizes)
        local = self._here(files, staging, find)
        # What is shared takes no space, so it comes before space is asked for.
        shared = local.share(
            self._parts(files, staging), staging, workers=self.jobs, stop=self.stop
        )
        room(staging.lacking(sizes))
        staging.allocate(sizes, shared)
        reused = self._reuse(files, staging, local, shared)
        received = self._fetch(files, staging, source)
        reused += self._copy_duplicates(files, staging)
        lost = next(self._missing(files, staging), None)
        if lost is not None:
            raise ProtocolViolation(f"{source.name}: chunk {lost[1].number} never arrived")
        flush([staging.path(number) for number in files], self.reporter, self.jobs)
        return Moved(received, reused.bytes_, reused.cloned)

    def staged(self, files: Iterable[int], staging: Staging) -> dict[str, Staged]:
        """Return what to place, by path."""
        return {self.index.files[n].path: Staged(staging.path(n)) for n in files}

    def _recheck(self, files: Iterable[int], staging: Staging) -> None:
        """Hash again what was staged before a restart of the machine."""
        doubtful = set(staging.doubtful)
        if not doubtful:
            return
        local = Local(lambda _digest: False, self.tables)
        for part in list(self._parts(files, staging)):
            if part.number in doubtful:
                staged = Place(staging.path(part.file), part.offset, part.length)
                if local.verified(staged, part.digest) is not None:
                    staging.complete(part)

    def _here(self, files: Sequence[int], staging: Staging, find: Finder) -> Local:
        needed = {part.digest for part in self._parts(files, staging)}
        local = Local(needed.__contains__, self.tables)
        find(local)
        return local

    def _reuse(
        self, files: Sequence[int], staging: Staging, local: Local, shared: Shared
    ) -> Copied:
        if not local:
            return Copied()
        by_file = (self._parts([number], staging) for number in files)
        return local.copy(
            side_by_side(by_file, self.jobs), staging, shared, workers=self.jobs, stop=self.stop
        )

    def _fetch(self, files: Sequence[int], staging: Staging, source: BlobSource) -> int:
        progress = self.reporter.bar("fetching")
        progress.expect(sum(part.stored_length for _, part in self._unique(files, staging, set())))
        engine = Engine(
            source, staging, self.index.coding, progress, workers=self.jobs, stop=self.stop
        )
        whole: frozenset[str] = frozenset()
        while True:
            without_ranges = engine.fetch(self._pieces(files, staging, whole))
            if without_ranges <= whole:
                return engine.received
            whole = without_ranges

    def _copy_duplicates(self, files: Sequence[int], staging: Staging) -> Copied:
        """Fill chunks that the artifact holds more than once from the one that was fetched."""
        left = list(self._parts(files, staging))
        if not left:
            return Copied()
        needed = {part.digest for part in left}
        local = Local(needed.__contains__, self.tables)
        for number in files:
            for chunk in self.index.chunks(self.index.files[number]):
                if chunk.digest in needed and not staging.missing(chunk.number):
                    place = Place(staging.path(number), chunk.offset, chunk.length)
                    local.add(chunk.digest, place)
        shared = local.share(left, staging, workers=self.jobs, stop=self.stop)
        return local.copy(left, staging, shared, workers=self.jobs, stop=self.stop)

    def _parts(self, files: Iterable[int], staging: Staging) -> Iterator[Part]:
        return (part for _, part in self._missing(files, staging))

    def _missing(self, files: Iterable[int], staging: Staging) -> Iterator[tuple[int, Part]]:
        return parts_of(self.index, files, staging.missing)

    def _pieces(
        self, files: Sequence[int], staging: Staging, whole: frozenset[str]
    ) -> Iterator[Piece]:
        seen: set[bytes] = set()
        layers = groupby(sorted(files), key=lambda number: self.index.files[number].layer)
        groups = [list(group) for _, group in layers]
        return side_by_side(
            (
                pieces(self._unique(group, staging, seen), self.layers, whole=whole)
                for group in groups
            ),
            self.jobs,
        )

    def _unique(
        self, files: Iterable[int], staging: Staging, seen: set[bytes]
    ) -> Iterator[tuple[int, Part]]:
        for layer, part in self._missing(files, staging):
            if part.digest not in seen:
                seen.add(part.digest)
                yield layer, part


def flush(files: Sequence[Path], reporter: Reporter, jobs: int) -> None:
    """Make files durable; their write-back was started while they were written.

    Every file that cannot be is removed: the kernel reports a failed write once, and afterwards
    what the page cache holds is not what the disk has. Raises the first DiskError.
    """
    failed: list[DiskError] = []
    progress: Progress = reporter.bar("writing to disk")
    progress.expect(sum(path.stat().st_size for path in files))

    def one(path: Path) -> None:
        try:
            with disk_errors("write", path):
                sync(path)
        except DiskError as error:
            # The others are asked, too, now that they can tell.
            failed.append(error)
            with suppress(OSError):
                path.unlink()
        else:
            progress.advance(path.stat().st_size)

    work(files, one, workers=jobs)
    if failed:
        raise failed[0]


def _span(index: ChunkIndex, number: int) -> tuple[int, int]:
    file = index.files[number]
    return file.first, file.first + file.chunks


def _is_file(path: Path, size: int) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size
