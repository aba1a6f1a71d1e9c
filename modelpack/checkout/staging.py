"""What a pull prepares: numbered files, complete before they get a name.

A pull stages beside its target (`checkout.area`), the node cache below its own root.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from modelpack.checkout.area import STAGED, check_private, remove_if_empty, take
from modelpack.checkout.journal import Journal
from modelpack.checkout.share import Shared
from modelpack.disk.errors import disk_errors
from modelpack.disk.kernel import preallocate, start_writeback
from modelpack.disk.space import require_space
from modelpack.spec.digest import Digest
from modelpack.transfer.piece import Part

_MODE: Final = 0o600
_WRITE: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class Staging:
    """The staged files of one artifact; a `transfer.piece.Sink`. One process at a time."""

    def __init__(self, root: Path, artifact: Digest, parts: int) -> None:
        """Lock and open; `root` is an area of ours, `parts` is how many parts there can be.

        Raises TargetConflict if another process holds the area, DiskError.
        """
        self.root = root
        self.directory = self.root / artifact.hex[:32]
        with disk_errors("prepare the pull in", self.root):
            self._lock = take(self.root)
            try:
                self.directory.mkdir(mode=0o700, exist_ok=True)
                check_private(self.directory)
                # The same artifact may be staged by chunks or by whole layers: not the same parts.
                self._journal = Journal(self.directory / "journal", f"{artifact}/{parts}")
            except BaseException:
                os.close(self._lock)
                raise
        self._discarded = False
        self._have = bytearray(parts)
        for number in self._journal.trusted:
            if number < parts:
                self._have[number] = 1
        self.doubtful = [number for number in self._journal.doubtful if number < parts]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock; what is staged stays for the next run unless it was discarded."""
        self._journal.close()
        # After a discard the area may be somebody else's already.
        if not self._discarded and not any(self._have):
            shutil.rmtree(self.directory, ignore_errors=True)
            remove_if_empty(self.root)
        os.close(self._lock)

    def path(self, file: int) -> Path:
        """Return the path of staged file `file`."""
        return self.directory / str(file)

    def missing(self, part: int) -> bool:
        """Whether part `part` is still to be had."""
        return not self._have[part]

    def forget(self, parts: Iterable[int]) -> None:
        """Take parts for missing after all: their file is not here any more."""
        for part in parts:
            self._have[part] = 0

    def create(self, sizes: Mapping[int, int]) -> None:
        """Create the files that do not exist yet, of these sizes, without any space."""
        for file, size in sizes.items():
            path = self.path(file)
            with disk_errors("create", path), suppress(FileExistsError):
                fd = os.open(path, _WRITE | os.O_CREAT | os.O_EXCL, _MODE)
                try:
                    os.ftruncate(fd, size)
                except BaseException:
                    path.unlink()
                    raise
                finally:
                    os.close(fd)

    def lacking(self, sizes: Mapping[int, int]) -> int:
        """Return how many bytes of the files have no space on the disk yet."""
        return sum(self._lacks(file, size) for file, size in sizes.items())

    def allocate(self, sizes: Mapping[int, int], shared: Shared | None = None) -> None:
        """Create the files that do not exist yet, and give all of them the space they lack.

        What is shared has its space: preallocating it would need that much for a moment, and the
        disk may have only what is needed. Raises DiskError with the shortfall before anything is
        written if it does not fit.
        """
        require_space(self.directory, self.lacking(sizes))
        self.create(sizes)
        for file, size in sizes.items():
            if not self._lacks(file, size):
                continue
            with disk_errors("reserve space for", self.path(file)):
                fd = os.open(self.path(file), _WRITE)
                try:
                    for start, end in (shared or Shared()).gaps(file, 0, size):
                        preallocate(fd, start, end - start)
                finally:
                    os.close(fd)

    def _lacks(self, file: int, size: int) -> int:
        with disk_errors("look at", self.path(file)):
            try:
                return max(0, size - self.path(file).stat().st_blocks * 512)
            except FileNotFoundError:
                return size

    def write(self, file: int, offset: int, data: bytes | memoryview) -> None:
        """Put bytes in place (see Sink)."""
        # Opened each time: 1 % of writing a slice, and no table of descriptors to run out of.
        with disk_errors("write", self.path(file)):
            fd = os.open(self.path(file), _WRITE)
            try:
                rest = memoryview(data)
                while rest:
                    done = os.pwrite(fd, rest, offset)
                    rest, offset = rest[done:], offset + done
            finally:
                os.close(fd)

    def complete(self, part: Part) -> None:
        """Count a part (see Sink)."""
        # By the chunk, not by the slice: a third faster, because fewer calls wait for the disk.
        with disk_errors("write", self.path(part.file)):
            fd = os.open(self.path(part.file), _WRITE)
            start_writeback(fd, part.offset, part.length)
            os.close(fd)
        with disk_errors("write the journal of", self.directory):
            self._journal.add(part.number)
        self._have[part.number] = 1

    def discard(self) -> None:
        """Remove everything that is staged for this target, and nothing else."""
        self._discarded = True
        for entry in self.root.iterdir():
            if STAGED.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)
        remove_if_empty(self.root)
