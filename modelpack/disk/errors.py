"""Errors of the operating system become errors for people, in one place."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from modelpack.disk.mount import mount_of
from modelpack.spec.errors import DiskError

_AGAIN: Final = "then run the same command again: it continues"
_HINTS: Final = {
    errno.ENOSPC: f"free some space, {_AGAIN}",
    errno.EDQUOT: f"raise the quota, {_AGAIN}",
    errno.EFBIG: "this file system, or `ulimit -f`, does not allow a file of that size",
    errno.EROFS: "see `dmesg` for the reason, then remount it; or choose another directory",
    errno.EACCES: "check the owner and mode of the directory, or choose another",
    errno.EPERM: "check the owner and mode of the directory, or choose another",
    errno.EIO: "the disk reports errors: see `dmesg`",
    errno.EXDEV: "all of it must be on one file system",
    errno.ENOLCK: "this file system cannot lock files; choose another directory",
}

_OF_DISKS: Final = (errno.ENOSPC, errno.EIO, errno.EROFS)
_PLENTY: Final = 1 << 20  # bytes


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Translate OSError inside the block to DiskError: "cannot <doing> <path>: <reason>"."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = _HINTS.get(error.errno or 0, "")
        more, better = _circumstances(error.errno or 0, path)
        raise DiskError(f"cannot {doing} {path}: {reason}{more}", hint=better or hint) from error


def _circumstances(code: int, path: Path) -> tuple[str, str]:
    """Return what else there is to say of a disk, and perhaps a better next step."""
    mount = mount_of(path) if code in _OF_DISKS else None
    if mount is None:
        return "", ""
    named = f"{mount.source} ({mount.kind}) on {mount.point}"
    if code != errno.ENOSPC:
        return f": {named}", ""
    try:
        status = os.statvfs(mount.point)
    except OSError:
        return f": {named}", ""
    free = status.f_bavail * status.f_frsize
    if status.f_files and not status.f_favail:
        words = f": all {status.f_files} inodes are taken of {named}"
        return words, f"remove files, however small, {_AGAIN}"
    thin = f"a quota, or what this disk itself lies on, is full: make room there, {_AGAIN}"
    return f": {free} bytes are free of {named}", thin if free > _PLENTY else ""
