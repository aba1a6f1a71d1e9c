"""Which mount a path is on: names of two mounts cannot be renamed into each other."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD: Final = -100
_STATX_MNT_ID_UNIQUE: Final = 0x4000  # linux/stat.h; Linux 6.8
_MASK: Final = slice(0, 4)
_MNT_ID: Final = slice(144, 152)


def mount_id(path: Path) -> int:
    """Return the id of the mount; raises OSError where there is no such path.

    Since Linux 6.8 no two mounts of one boot have the same. Before, an unmounted one's may be given
    to the next.
    """
    return _unique(path) or _in_table(path)


def file_system(path: Path) -> str:
    """Return the type of the file system that a path is on, "an unknown file system" if not known.

    By mount, not by device: a file of btrfs has the device of its subvolume, which no mount has.
    """
    number = str(_in_table(path))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[0] == number:
            return after.split(" ")[0]
    return "an unknown file system"


def _unique(path: Path) -> int:
    statx = getattr(_LIBC, "statx", None)
    buffer = ctypes.create_string_buffer(256)
    if statx is None or statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_MNT_ID_UNIQUE, buffer):
        return 0
    known = int.from_bytes(buffer.raw[_MASK], sys.byteorder) & _STATX_MNT_ID_UNIQUE
    return int.from_bytes(buffer.raw[_MNT_ID], sys.byteorder) if known else 0


def _in_table(path: Path) -> int:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
            if line.startswith("mnt_id:"):
                return int(line.partition(":")[2])
    finally:
        os.close(fd)
    return -1
