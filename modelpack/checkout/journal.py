"""Which parts of a staged pull are complete, surviving kill -9 at any instant.

A record is written after the bytes it speaks of. As long as the machine has not been restarted and
the file system is the same mount, the page cache holds both, so records can be trusted without any
fsync; otherwise they only say what is worth hashing again.
"""

import errno
import os
import threading
from array import array
from pathlib import Path
from typing import Final

from modelpack.disk.mount import mount_id

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MASK: Final = (1 << 32) - 1  # a record is a number and its complement: a torn one shows
_RECORD: Final = 8
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class Journal:
    """An append-only list of part numbers."""

    def __init__(self, path: Path, identity: str) -> None:
        """Open or create; `identity` names what is staged, a journal of something else is dropped.

        `trusted` and `doubtful` are the numbers found; doubtful ones were written before a restart.
        """
        line = f"modelpack journal 2 {identity} {_instance(path.parent)}\n".encode()
        found, same_instance = _read(path, line)
        self.trusted = found if same_instance else array("I")
        self.doubtful = array("I") if same_instance else found
        self._lock = threading.Lock()
        self._fd = os.open(path, _FLAGS, 0o600)
        if not same_instance:
            os.ftruncate(self._fd, 0)
            self._append(line)
        else:
            # What follows a record that a full disk tore is not to be believed.
            os.ftruncate(self._fd, len(line) + _RECORD * len(found))

    def add(self, number: int) -> None:
        """Record that part `number` is complete; its bytes were written before. Thread-safe.

        Raises OSError, and then nothing more is recorded. Does nothing once it is closed: a
        straggler must not write to what has the descriptor then.
        """
        with self._lock:
            if self._fd >= 0:
                self._append(array("I", (number, number ^ _MASK)).tobytes())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _append(self, data: bytes) -> None:
        written = os.write(self._fd, data)
        if written != len(data):
            os.close(self._fd)
            self._fd = -1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(path: Path, line: bytes) -> tuple["array[int]", bool]:
    numbers = array("I")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return numbers, False
    head, newline, body = data.partition(b"\n")
    if not newline or head.split(b" ")[:4] != line.split(b" ")[:4]:
        return numbers, False
    pairs = array("I")
    pairs.frombytes(body[: len(body) // _RECORD * _RECORD])
    for number, complement in zip(pairs[::2], pairs[1::2], strict=True):
        if number ^ _MASK != complement:
            break
        numbers.append(number)
    return numbers, head + newline == line


def _instance(directory: Path) -> str:
    """Name this boot of this machine and this mount of this file system."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        boot = f"unknown-{os.getpid()}"  # never equal to an earlier one
    device, mount = directory.stat().st_dev, mount_id(directory)
    return f"{boot}-{device}-{mount}-{os.statvfs(directory).f_fsid}"
