"""The bytes of a layer blob on their way to the tar reader and into staged files.

Two of them: an uncompressed tar is copied from file to file inside the kernel, a compressed one is
decoded in slices of 1 MiB.
"""

import errno
import os
from typing import BinaryIO, Final

from modelpack.disk.durable import write_all
from modelpack.disk.kernel import start_writeback
from modelpack.spec import limits
from modelpack.spec.errors import BadManifest, LimitExceeded
from modelpack.spec.limits import MIB
from modelpack.spec.progress import Progress
from modelpack.spec.source import ByteStream

_SLICE: Final = MIB
# One call of the kernel: short enough for progress, and for Ctrl-C to be noticed.
_KERNEL_SLICE: Final = 32 * MIB
_NO_KERNEL_COPY: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


class PlainFeed:
    """An uncompressed tar in a regular file; a `codec.tarread.TarInput`."""

    def __init__(self, blob: BinaryIO, progress: Progress) -> None:
        self._fd = blob.fileno()
        self._size = os.fstat(self._fd).st_size
        self._progress = progress
        self._at = 0
        self._in_kernel = True

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes; fewer only at the end."""
        data = bytearray()
        while len(data) < size and (
            part := os.pread(self._fd, size - len(data), self._at + len(data))
        ):
            data += part
        return bytes(data[: self._advance(len(data))])

    def copy(self, size: int, fd: int, /) -> int:
        """Write `size` bytes to `fd`, from its start; returns how many there were."""
        done = 0
        while done < size:
            count = self._copy_some(min(size - done, _KERNEL_SLICE), fd)
            if not count:
                break
            _begin_writing(fd, done, count)
            done += self._advance(count)
        return done

    def skip(self, size: int, /) -> int:
        """Drop `size` bytes; returns how many there were."""
        return self._advance(min(size, self._size - self._at))

    def require(self, size: int, /) -> None:
        """Raise BadManifest if the blob is too short."""
        if size > self._size - self._at:
            raise BadManifest(
                f"tar holds a file of {size} bytes, but only {self._size - self._at} follow: it is "
                "cut off"
            )

    def _copy_some(self, size: int, fd: int) -> int:
        if self._in_kernel:
            try:
                # Zero is not always the end: some file systems answer so for what they cannot do.
                if count := os.copy_file_range(self._fd, fd, size, offset_src=self._at):
                    return count
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                self._in_kernel = False
        data = os.pread(self._fd, min(size, _SLICE), self._at)
        write_all(fd, data)
        return len(data)

    def _advance(self, count: int) -> int:
        self._at += count
        self._progress.advance(count)
        return count


class DecodedFeed:
    """What a compressed blob holds; a `codec.tarread.TarInput`. Never gives more than `limit`."""

    def __init__(self, stream: ByteStream, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._left = limit
        self._rest = memoryview(b"")

    @classmethod
    def limit_of(cls, size: int) -> int:
        """Return how many bytes a compressed blob of `size` bytes may become."""
        return size * limits.EXPANSION_FACTOR + limits.EXPANSION_FLOOR

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes; fewer only at the end."""
        data = bytearray()
        while len(data) < size and (part := self._some(size - len(data))):
            data += part
        return bytes(data)

    def copy(self, size: int, fd: int, /) -> int:
        """Write `size` bytes to `fd`, from its start; returns how many there were."""
        done = 0
        while done < size and (part := self._some(size - done)):
            write_all(fd, part)
            _begin_writing(fd, done, len(part))
            done += len(part)
        return done

    def skip(self, size: int, /) -> int:
        """Drop `size` bytes; returns how many there were."""
        done = 0
        while done < size and (part := self._some(size - done)):
            done += len(part)
        return done

    def require(self, size: int, /) -> None:
        """Raise LimitExceeded if that much may not come."""
        if size > self._left + len(self._rest):
            raise self._exceeded()

    def _some(self, size: int) -> memoryview:
        """Return 1..size bytes, or nothing at the end."""
        if not self._rest:
            # One byte above the limit is asked for, so that reaching it exactly is no offence.
            data = self._stream.read(min(_SLICE, self._left + 1))
            self._left -= len(data)
            if self._left < 0:
                raise self._exceeded()
            self._rest = memoryview(data)
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    def _exceeded(self) -> LimitExceeded:
        return LimitExceeded(
            f"expands to more than {self._limit} bytes, {limits.EXPANSION_FACTOR} times its size"
        )


def _begin_writing(fd: int, offset: int, length: int) -> None:
    # Small files are left to the kernel: asking for each costs more than it saves.
    if length >= _SLICE:
        start_writeback(fd, offset, length)
