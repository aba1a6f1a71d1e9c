"""Room on a disk, asked for before anything is written."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelpack.disk.errors import disk_errors
from modelpack.spec.errors import DiskError

_PAUSE: Final = 0.02  # seconds
_SAME: Final = 10  # looks without a change: nothing more is coming
_MOST: Final = 2.0


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


def once_freed(missing: Callable[[], int]) -> int:
    """Return how many bytes are missing after files were removed, when that has had its effect.

    XFS frees the blocks of a removed file in the background: seen, 40 ms for 500 MB in pieces.
    Waits until nothing is missing, or nothing changes any more.
    """
    left, same, deadline = missing(), 0, time.monotonic() + _MOST
    while left > 0 and same < _SAME and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        before, left = left, missing()
        same = same + 1 if left == before else 0
    return left
