"""Blocks that several files share: made, and counted. XFS and btrfs can, ext4 and tmpfs cannot."""

import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

_FICLONERANGE: Final = 0x4020940D
_CLONE: Final = struct.Struct("=qQQQ")  # linux/fs.h, struct file_clone_range
_FIEMAP: Final = 0xC020660B
_QUESTION: Final = struct.Struct("=QQLLLL")  # linux/fiemap.h, struct fiemap
_EXTENT: Final = struct.Struct("=QQQQQLLLL")  # and struct fiemap_extent
_EXTENTS: Final = 256  # asked for at a time
_LAST: Final = 0x1
_SHARED: Final = 0x2000


def clone_range(source: int, offset: int, length: int, target: int, at: int) -> None:
    """Let a range of an open file be the very blocks of another's, until one of them is written.

    Both must be on one file system, and offsets and length multiples of `block_size`. What the
    target had there is freed. Raises OSError where this cannot be done; then nothing has changed
    that matters to who writes the range now.
    """
    fcntl.ioctl(target, _FICLONERANGE, _CLONE.pack(source, offset, length, at))


def block_size(fd: int) -> int:
    """Return the unit in which the file system of an open file shares, in bytes."""
    return os.fstatvfs(fd).f_bsize


def shared_bytes(fd: int) -> int:
    """Return how many bytes of an open file are in blocks that other files have, too.

    Removing it makes so much less free than its size. 0 where nobody can say.
    """
    try:
        return sum(length for length, flags in _extents(fd) if flags & _SHARED)
    except OSError:
        return 0


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Yield length and flags of every extent, in order."""
    at = 0
    while True:
        answer = bytearray(_QUESTION.size + _EXTENTS * _EXTENT.size)
        _QUESTION.pack_into(answer, 0, at, (1 << 63) - at, 0, 0, _EXTENTS, 0)
        fcntl.ioctl(fd, _FIEMAP, answer)
        count = _QUESTION.unpack_from(answer)[3]
        for number in range(count):
            start, _, length, _, _, flags, *_ = _EXTENT.unpack_from(
                answer, _QUESTION.size + number * _EXTENT.size
            )
            yield length, flags
            at = start + length
        if not count or flags & _LAST:
            return
