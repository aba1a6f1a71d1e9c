"""Room on a disk, asked for before anything is written."""

import os
from pathlib import Path

from modelpack.disk.errors import disk_errors
from modelpack.spec.errors import DiskError


def require_space(directory: Path, bytes_: int) -> None:
    """Raise DiskError with the exact shortfall if `bytes_` more do not fit."""
    with disk_errors("look at the disk of", directory):
        stat = os.statvfs(directory)
    free = stat.f_bavail * stat.f_frsize
    if bytes_ > free:
        raise DiskError(
            f"{directory}: needs {bytes_} bytes, {free} are free: {bytes_ - free} too few",
            hint="free some space, or choose another directory",
        )
