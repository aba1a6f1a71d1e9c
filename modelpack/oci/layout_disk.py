"""Files of a layout: durable when written, hostile when read, errors in words."""

import errno
import os
import stat
from pathlib import Path
from typing import Final

from modelpack.disk.durable import sync, write_all
from modelpack.disk.errors import disk_errors
from modelpack.spec.errors import LimitExceeded, ProtocolViolation

_COPY_AGAIN: Final = "the layout is damaged: copy or push it again into an empty directory"
# O_NONBLOCK: a FIFO in place of a blob must not make anybody wait for its writer.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
MODE: Final = 0o644  # as every other tool writes layouts: they are shared


class DamagedLayout(ProtocolViolation):
    """A layout that is not what the image specification says; no repetition will help."""

    permanent = True

    def __init__(self, message: str, *, hint: str = _COPY_AGAIN) -> None:
        super().__init__(message, hint=hint)


def open_regular(path: Path) -> tuple[int, int] | None:
    """Open a regular file for reading; returns (descriptor, size), or None if there is nothing.

    Raises DamagedLayout for anything else that has this name, DiskError.
    """
    try:
        fd = os.open(path, _READ)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link; a socket
            raise DamagedLayout(f"{path}: is not a regular file") from error
        with disk_errors("open", path):
            raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise DamagedLayout(f"{path}: is not a regular file")
    return fd, status.st_size


def read_bounded(path: Path, most: int) -> bytes | None:
    """Read a whole file of at most `most` bytes; None if there is none.

    Raises LimitExceeded, DamagedLayout, DiskError.
    """
    opened = open_regular(path)
    if opened is None:
        return None
    fd, size = opened
    with os.fdopen(fd, "rb") as file, disk_errors("read", path):
        # The size is only a promise: somebody may be appending.
        data = file.read(most + 1) if size <= most else b""
    if size > most or len(data) > most:
        raise LimitExceeded(f"{path}: {max(size, len(data))} bytes; expected at most {most}")
    return data


def write_durably(temporary: Path, path: Path, data: bytes) -> None:
    """Create or replace `path`: after a crash at any instant it is the old or the new file."""
    with disk_errors("write", path):
        fd = os.open(temporary, _NEW, MODE)
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
        sync(path.parent)


def make_directory(path: Path) -> None:
    """Create a directory that survives a crash; it may be there.

    Only a directory will do, not a link to one: a hostile layout would have us write elsewhere.
    Raises DamagedLayout, DiskError.
    """
    with disk_errors("create", path):
        try:
            path.mkdir()
        except FileExistsError:
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise DamagedLayout(f"{path}: is not a directory") from None
            return
        sync(path.parent)
