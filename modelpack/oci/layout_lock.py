"""Locks between processes and threads, released by the kernel when their holder dies."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelpack.disk.errors import disk_errors
from modelpack.oci.layout_disk import MODE
from modelpack.spec.errors import Unavailable

_PATIENCE_SECONDS: Final = 60.0
_LOOK_AGAIN_SECONDS: Final = 0.02
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
Beat = Callable[[], None]


def wait_for(fd: int, kind: int, path: Path, sign_of_life: Callable[[], object]) -> None:
    """Take a flock of a kind; waits as long as `sign_of_life` keeps changing.

    Raises Unavailable when nothing changed for a minute, DiskError where locks are not supported.
    """
    seen, since = sign_of_life(), time.monotonic()
    while not try_lock(fd, kind, path):
        time.sleep(_LOOK_AGAIN_SECONDS)
        now = sign_of_life()
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > _PATIENCE_SECONDS:
            raise Unavailable(
                f"{path}: another process holds it and does nothing",
                hint=f"see who has it open: fuser -v {path}",
            )


def try_lock(fd: int, kind: int, path: Path) -> bool:
    """Take a flock of a kind if nobody is in the way."""
    with disk_errors("lock", path):
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextmanager
def exclusive(path: Path) -> Iterator[Beat]:
    """Hold a lock file alone; it is created. The value, called often, keeps others patient.

    Each holder opens the file anew, so threads of one process exclude each other too.
    """
    with disk_errors("open", path):
        fd = os.open(path, _FLAGS | os.O_CREAT, MODE)
    try:
        wait_for(fd, fcntl.LOCK_EX, path, lambda: os.fstat(fd).st_mtime_ns)
        yield lambda: os.utime(fd)
    finally:
        os.close(fd)


class Lease:
    """Blobs that this process relies on although no manifest names them yet.

    While any are held, no process collects garbage in the layout.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._digests: set[str] = set()
        self._fd = -1

    def hold(self, digest: str, *, create: bool) -> None:
        """Rely on a blob from now on; look for it afterwards.

        Without `create` this only succeeds where somebody has written here before: a layout that
        is only read is left as it is.
        """
        with self._lock:
            if self._fd < 0 and not self._take(create=create):
                return
            self._digests.add(digest)

    def settle(self, digests: Iterable[str]) -> None:
        """Let go of blobs that a manifest names now, or that are not there."""
        with self._lock:
            self._digests.difference_update(digests)
            if not self._digests:
                self._drop()

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._digests.clear()
            self._drop()

    @contextmanager
    def nobody(self) -> Iterator[Beat | None]:
        """Keep leases from being taken (see `exclusive`); the value is None if there are some."""
        with disk_errors("open", self._path):
            fd = os.open(self._path, _FLAGS | os.O_CREAT, MODE)
        try:
            yield (lambda: os.utime(fd)) if try_lock(fd, fcntl.LOCK_EX, self._path) else None
        finally:
            os.close(fd)

    def _take(self, *, create: bool) -> bool:
        try:
            fd = os.open(self._path, _FLAGS | (os.O_CREAT if create else 0), MODE)
        except OSError:
            if not create:
                return False
            with disk_errors("open", self._path):
                raise
        try:
            wait_for(fd, fcntl.LOCK_SH, self._path, lambda: os.fstat(fd).st_mtime_ns)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def _drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
