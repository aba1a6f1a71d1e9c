"""Where a pull is prepared: numbered files beside the target, complete before they get a name.

The staging directory lies beside the target, so that the target stays untouched until everything is
verified; inside it only where the parent is another file system or not ours to write. It is ours
alone: a directory of that name with anything else in it is refused, never cleaned.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from modelpack.checkout.journal import Journal
from modelpack.disk.errors import disk_errors
from modelpack.disk.kernel import preallocate, start_writeback
from modelpack.disk.space import require_space
from modelpack.spec.digest import Digest
from modelpack.spec.errors import TargetConflict
from modelpack.spec.names import RESERVED_DIRECTORY
from modelpack.transfer.piece import Part

_MODE: Final = 0o600
_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_STAGED: Final = re.compile(r"[0-9a-f]{32}")  # a directory of ours: the start of a digest


class Staging:
    """The staged files of one artifact; a `transfer.piece.Sink`. One process at a time."""

    def __init__(self, target: Path, artifact: Digest, parts: int) -> None:
        """Lock and open; `target` is absolute, `parts` is how many parts there can be.

        Raises TargetConflict if another process is preparing the same target, DiskError.
        """
        self.root = _place_for(target)
        self.directory = self.root / artifact.hex[:32]
        with disk_errors("prepare the pull in", self.root):
            self._lock = _locked(self.root, target)
            try:
                self.directory.mkdir(mode=0o700, exist_ok=True)
                # The same artifact may be staged by chunks or by whole layers: not the same parts.
                self._journal = Journal(self.directory / "journal", f"{artifact}/{parts}")
            except BaseException:
                os.close(self._lock)
                raise
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
        if not any(self._have):
            shutil.rmtree(self.directory, ignore_errors=True)
            _remove_if_empty(self.root)
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

    def allocate(self, sizes: Mapping[int, int]) -> None:
        """Create the files that do not exist yet, with all their space.

        Raises DiskError with the shortfall before anything is written if they do not fit.
        """
        absent = {file: size for file, size in sizes.items() if not self.path(file).exists()}
        require_space(self.directory, sum(absent.values()))
        for file, size in absent.items():
            path = self.path(file)
            with disk_errors("reserve space for", path):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
                try:
                    preallocate(fd, size)
                except BaseException:
                    path.unlink()
                    raise
                finally:
                    os.close(fd)

    def write(self, file: int, offset: int, data: bytes | memoryview) -> None:
        """Put bytes in place (see Sink)."""
        # Opened each time: 1 % of writing a slice, and no table of descriptors to run out of.
        with disk_errors("write", self.path(file)):
            fd = os.open(self.path(file), os.O_WRONLY | os.O_CLOEXEC)
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
            fd = os.open(self.path(part.file), os.O_WRONLY | os.O_CLOEXEC)
            start_writeback(fd, part.offset, part.length)
            os.close(fd)
        with disk_errors("write the journal of", self.directory):
            self._journal.add(part.number)
        self._have[part.number] = 1

    def discard(self) -> None:
        """Remove everything that is staged for this target, and nothing else."""
        self._have = bytearray(len(self._have))
        for entry in self.root.iterdir():
            if _STAGED.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)
        _remove_if_empty(self.root)


def clear_leftovers(target: Path) -> None:
    """Remove what an interrupted pull of something else left, now that a pull has ended well."""
    root = _place_for(target)
    if root.is_dir() and not root.is_symlink():
        with disk_errors("clean up", root):
            lock = _locked(root, target)
            for entry in root.iterdir():
                if _STAGED.fullmatch(entry.name):
                    shutil.rmtree(entry, ignore_errors=True)
            _remove_if_empty(root)
            os.close(lock)


def _place_for(target: Path) -> Path:
    parent = target.parent
    for place in (target, *target.parents):
        if place.exists():
            if not place.is_dir():
                raise TargetConflict(f"{place}: is a file; expected a directory to pull into")
            break
    if (target / "oci-layout").exists():
        raise TargetConflict(f"{target}: is an OCI layout", hint="pull into another directory")
    with disk_errors("prepare the pull in", parent):
        parent.mkdir(parents=True, exist_ok=True)
        foreign = target.exists() and target.stat().st_dev != parent.stat().st_dev
        longest = os.pathconf(parent, "PC_NAME_MAX")
    beside = f".{target.name}{RESERVED_DIRECTORY}"
    crowded = len(os.fsencode(beside)) > longest
    if foreign or crowded or parent == target or not os.access(parent, os.W_OK):
        return target / RESERVED_DIRECTORY
    return parent / beside


def _check_ours(root: Path) -> None:
    """Refuse a directory that somebody else made: everything in ours may be removed by us."""
    if root.is_symlink() or not root.is_dir():
        raise TargetConflict(f"{root}: is in the way", hint="move it away")
    for entry in root.iterdir():
        if entry.name != "lock" and not _STAGED.fullmatch(entry.name):
            raise TargetConflict(
                f"{root}: holds {entry.name[:80]!r}, which modelpack did not put there",
                hint="move it away, or pull into another directory",
            )


def _locked(root: Path, target: Path) -> int:
    while True:
        if not root.is_symlink():
            with suppress(FileExistsError):
                root.mkdir(mode=0o700, parents=True)
        _check_ours(root)
        try:
            fd = os.open(root / "lock", _LOCK_FLAGS, _MODE)
        except FileNotFoundError:
            continue  # the last holder removed the directory meanwhile
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the directory between our open and our lock.
            if os.path.samestat(os.fstat(fd), (root / "lock").stat()):
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(fd)
            raise TargetConflict(
                f"{target}: another modelpack pull is writing here", hint="wait for it to end"
            ) from None
        os.close(fd)


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):
        # The lock goes last: while it is there nobody else starts here.
        if [entry.name for entry in directory.iterdir()] == ["lock"]:
            (directory / "lock").unlink()
        directory.rmdir()
