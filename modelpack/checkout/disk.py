"""Errors of the operating system become errors for people, in one place."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelpack.spec.errors import DiskError

_HINTS: Final = {
    errno.ENOSPC: "free some space, then run the same command again: it continues",
    errno.EDQUOT: "raise the quota, then run the same command again: it continues",
    errno.EROFS: "the file system is mounted read-only; choose another directory",
    errno.EACCES: "check the owner and mode of the directory, or choose another",
    errno.EPERM: "check the owner and mode of the directory, or choose another",
    errno.EIO: "the disk reports errors: see `dmesg`",
    errno.EFBIG: "this file system cannot hold a file of that size; choose another",
}


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Translate OSError inside the block to DiskError: "cannot <doing> <path>: <reason>"."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = _HINTS.get(error.errno or 0, "")
        raise DiskError(f"cannot {doing} {path}: {reason}", hint=hint) from error


def require_space(directory: Path, bytes_: int) -> None:
    """Raise DiskError with the exact shortfall if `bytes_` more do not fit."""
    with disk_errors("look at the disk of", directory):
        stat = os.statvfs(directory)
    free = stat.f_bavail * stat.f_frsize
    if bytes_ > free:
        raise DiskError(
            f"{directory}: needs {bytes_} bytes, {free} are free: {bytes_ - free} too few",
            hint="free some space, or pull elsewhere",
        )
