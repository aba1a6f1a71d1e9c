"""Errors of the operating system become errors for people, in one place."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelpack.spec.errors import DiskError

_AGAIN: Final = "then run the same command again: it continues"
_HINTS: Final = {
    errno.ENOSPC: f"free some space, {_AGAIN}",
    errno.EDQUOT: f"raise the quota, {_AGAIN}",
    errno.EFBIG: "this file system, or `ulimit -f`, does not allow a file of that size",
    errno.EROFS: "the file system is mounted read-only; choose another directory",
    errno.EACCES: "check the owner and mode of the directory, or choose another",
    errno.EPERM: "check the owner and mode of the directory, or choose another",
    errno.EIO: "the disk reports errors: see `dmesg`",
    errno.EXDEV: "all of it must be on one file system",
    errno.ENOLCK: "this file system cannot lock files; choose another directory",
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
