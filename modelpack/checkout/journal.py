"""Which parts of a staged pull are complete, surviving kill -9 at any instant.

A record is written after the bytes it speaks of. As long as the machine has not been restarted and
the file system is the same mount, the page cache holds both, so records can be trusted without any
fsync; otherwise they only say what is worth hashing again.
"""

import os
from array import array
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_RECORD: Final = 4


class Journal:
    """An append-only list of part numbers."""

    def __init__(self, path: Path, identity: str) -> None:
        """Open or create; `identity` names what is staged, a journal of something else is dropped.

        `trusted` and `doubtful` are the numbers found; doubtful ones were written before a restart.
        """
        line = f"modelpack journal 1 {identity} {_instance(path.parent)}\n".encode()
        found, same_instance = _read(path, line)
        self.trusted = found if same_instance else array("I")
        self.doubtful = array("I") if same_instance else found
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if not same_instance:
            os.ftruncate(self._fd, 0)
            os.write(self._fd, line)
        else:
            # kill -9 cannot tear a record, a full disk can.
            os.ftruncate(self._fd, len(line) + _RECORD * len(found))

    def add(self, number: int) -> None:
        """Record that part `number` is complete; its bytes were written before. Thread-safe."""
        os.write(self._fd, array("I", (number,)).tobytes())

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _read(path: Path, line: bytes) -> tuple["array[int]", bool]:
    numbers = array("I")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return numbers, False
    head, newline, body = data.partition(b"\n")
    if not newline or head.split(b" ")[:4] != line.split(b" ")[:4]:
        return numbers, False
    numbers.frombytes(body[: len(body) // _RECORD * _RECORD])
    return numbers, head + newline == line


def _instance(directory: Path) -> str:
    """Name this boot of this machine and this mount of this file system."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        boot = f"unknown-{os.getpid()}"  # never equal to an earlier one
    return f"{boot}-{directory.stat().st_dev}-{os.statvfs(directory).f_fsid}"
