"""Blobs on their way into a layout: partial files that the next run continues.

They lie in `.modelpack/uploads/`, which other tools do not look into, and get their name under
blobs/ by a rename once every byte is on disk and has the right digest.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from modelpack.disk.durable import sync, write_all
from modelpack.disk.errors import disk_errors
from modelpack.disk.space import require_space
from modelpack.oci.layout_disk import MODE, DamagedLayout, make_directory, open_regular
from modelpack.oci.layout_lock import try_lock, wait_for
from modelpack.spec.digest import Hasher
from modelpack.spec.errors import BadSource, IntegrityError
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import Descriptor
from modelpack.spec.progress import Progress
from modelpack.spec.source import Content

_ABANDONED_SECONDS: Final = 7 * 24 * 3600
_WRITEBACK: Final = 16 * MIB
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Uploads:
    """The partial files of one layout. One writer per blob, among threads and processes."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name

    def put(self, content: Content, target: Path, progress: Progress) -> None:
        """Receive a blob as `target`; bytes of an interrupted run are not asked for again.

        If another thread or process is at the same blob, waits for it as long as it gets on, and
        then has nothing to do. Raises IntegrityError, DiskError, Unavailable.
        """
        make_directory(self._directory)
        partial = self._directory / f"{target.parent.name}-{target.name}"
        with _held(partial) as fd:
            if _size(target) == content.blob.size:
                progress.expect(-content.blob.size)
                _remove(partial)
                return
            try:
                self._receive(fd, content, partial, progress)
            except BadSource:
                _remove(partial)  # the file has changed: nobody will ask for these bytes again
                raise
            with disk_errors("write", target):
                try:
                    os.fsync(fd)
                except OSError:
                    # Reported once; afterwards the page cache is not what the disk has.
                    os.ftruncate(fd, 0)
                    raise
                partial.rename(target)
                sync(target.parent)

    def expire(self) -> None:
        """Remove what nobody has continued for a week."""
        with suppress(OSError):
            for partial in list(self._directory.iterdir()):
                if time.time() - partial.lstat().st_mtime > _ABANDONED_SECONDS:
                    _remove_if_idle(partial)

    def _receive(self, fd: int, content: Content, partial: Path, progress: Progress) -> None:
        blob = content.blob
        hasher = blob.checked_digest.hasher()
        with disk_errors("continue", partial):
            have = _hash_present(fd, blob.size, hasher)
        require_space(partial.parent, blob.size - have)
        progress.expect(-have)
        done = have
        if have < blob.size or not blob.size:
            writeback = have
            for part in content.read_from(have):
                if done + len(part) > blob.size:
                    done += len(part)
                    break
                hasher.update(part)
                with disk_errors("write", partial):
                    write_all(fd, part)
                    done += len(part)
                    if done - writeback >= _WRITEBACK:
                        # Begins to write these pages now, so that the final fsync is short.
                        os.posix_fadvise(fd, writeback, done - writeback, os.POSIX_FADV_DONTNEED)
                        writeback = done
                progress.advance(len(part))
        if done == blob.size and hasher.hexdigest() == blob.checked_digest.hex:
            return
        progress.advance(-(min(done, blob.size) - have))
        with disk_errors("write", partial):
            os.ftruncate(fd, 0)
        if not have:
            raise self._wrong(blob, done, hasher)
        # After a power failure a partial file may hold anything: once more, without it.
        progress.expect(have)
        self._receive(fd, content, partial, progress)

    def _wrong(self, blob: Descriptor, done: int, hasher: Hasher) -> IntegrityError:
        algorithm = blob.checked_digest.algorithm
        if done > blob.size:
            got = f"more than its {blob.size} bytes"
        elif done < blob.size:
            got = f"{done} of {blob.size} bytes"
        else:
            got = f"{algorithm}:{hasher.hexdigest()}"
        return IntegrityError(
            f"blob {blob.digest}", expected=blob.digest, got=got, source=f"what {self._name} was "
            "given", hint="a file changed while it was read, or the source is damaged: run again",
        )  # fmt: skip


@contextmanager
def _held(partial: Path) -> Iterator[int]:
    """Create or open a partial file and lock it; one that nothing came into is removed."""
    fd = _open_locked(partial)
    try:
        yield fd
    finally:
        with suppress(OSError):
            if os.fstat(fd).st_size == 0:
                _remove(partial, only=fd)
        os.close(fd)


def _open_locked(partial: Path) -> int:
    while True:
        with disk_errors("open", partial):
            fd = os.open(partial, _FLAGS, MODE)
        try:
            if _lock(fd, partial):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _lock(fd: int, partial: Path) -> bool:
    """Wait for the lock; False if the last holder renamed or removed the file meanwhile."""
    # A holder that reads its own old bytes again keeps touching the file.
    wait_for(fd, fcntl.LOCK_EX, partial, lambda: _life(fd))
    try:
        return os.path.samestat(os.fstat(fd), partial.lstat())
    except FileNotFoundError:
        return False


def _life(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


def _hash_present(fd: int, size: int, hasher: Hasher) -> int:
    """Hash what an interrupted run left; returns its length, the descriptor is at its end."""
    have = os.fstat(fd).st_size
    if have > size:
        os.ftruncate(fd, 0)
        have = 0
    buffer = memoryview(bytearray(min(have, MIB)))
    at = 0
    while at < have:
        count = os.preadv(fd, [buffer[: have - at]], at)
        if not count:
            break
        hasher.update(buffer[:count])
        at += count
        os.utime(fd)
    os.lseek(fd, at, os.SEEK_SET)
    return at


def _size(target: Path) -> int | None:
    opened = open_regular(target)
    if opened is None:
        return None
    os.close(opened[0])
    return opened[1]


def _remove(path: Path, only: int = -1) -> None:
    """Remove a file, or with `only` remove it if it is still the one of this descriptor."""
    with disk_errors("remove", path), suppress(FileNotFoundError):
        if only < 0 or os.path.samestat(os.fstat(only), path.lstat()):
            path.unlink()


def _remove_if_idle(partial: Path) -> None:
    with suppress(DamagedLayout):
        opened = open_regular(partial)
        if opened is None:
            return
        fd, _ = opened
        try:
            if try_lock(fd, fcntl.LOCK_EX, partial):
                _remove(partial, only=fd)
        finally:
            os.close(fd)
