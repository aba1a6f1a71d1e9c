"""Two Linux calls that Python does not offer: preallocation and early write-back."""

import ctypes
import errno
import os
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE: Final = 2


def preallocate(fd: int, offset: int, length: int) -> None:
    """Reserve the space of a range of a file, so that a full disk is met now and not at the end.

    Unlike os.posix_fallocate this never falls back to writing every block; where the file system
    cannot reserve, nothing happens. Raises OSError (ENOSPC, EDQUOT, EFBIG).
    """
    if not length or _LIBC.fallocate(fd, 0, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):
        raise OSError(code, os.strerror(code))


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing a range to disk, so that the final fsync has little to do."""
    _LIBC.sync_file_range(
        fd, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
    )
