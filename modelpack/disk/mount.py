"""Which mount a path is on: names of two mounts cannot be renamed into each other."""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD: Final = -100
_STATX_MNT_ID_UNIQUE: Final = 0x4000  # linux/stat.h; Linux 6.8
_MASK: Final = slice(0, 4)
_MNT_ID: Final = slice(144, 152)


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of the mount table: what is mounted, of which type, where."""

    source: str
    kind: str
    point: str


def mount_of(path: Path) -> Mount | None:
    """Return the mount that a path is on, also of a path that is not there, or cannot be asked."""
    try:
        # By mount, not by device: a file of btrfs has the device of its subvolume, which no mount
        # has. And by the number of the table, which is not the one that is unique.
        number = str(_in_table(path))
        found = [one for key, one in _table() if key == number]
    except OSError:
        place = Path(os.path.realpath(path))
        above = [one for _, one in _table() if place.is_relative_to(one.point)]
        found = sorted(above, key=lambda one: len(one.point))
    return found[-1] if found else None


def _table() -> Iterator[tuple[str, Mount]]:
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, source, *_) = before.split(" "), after.split(" ")
        yield fields[0], Mount(_unescaped(source), kind, _unescaped(fields[4]))


def mount_id(path: Path) -> int:
    """Return the id of the mount; raises OSError where there is no such path.

    Since Linux 6.8 no two mounts of one boot have the same. Before, an unmounted one's may be given
    to the next.
    """
    return _unique(path) or _in_table(path)


def file_system(path: Path) -> str:
    """Return the type of the file system that a path is on; in words if it is not known."""
    mount = mount_of(path)
    return mount.kind if mount else "an unknown file system"


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


def _unescaped(text: str) -> str:
    """Undo what the table does to spaces and the like: three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
