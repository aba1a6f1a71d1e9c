"""Bytes and names that are still there after the power failed."""

import os
from pathlib import Path


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything at the position of the descriptor."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def make_directories(path: Path) -> None:
    """Create a directory and its parents where they are missing, each name durable."""
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for directory in reversed(missing):
        try:
            directory.mkdir()
        except FileExistsError:
            if not directory.is_dir():
                raise
        else:
            sync(directory.parent)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a directory, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
