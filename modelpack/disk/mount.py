"""Which mount a path is on: names of two mounts cannot be renamed into each other."""

import os
from pathlib import Path


def mount_id(path: Path) -> int:
    """Return the id of the mount; raises OSError where there is no such path."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
            if line.startswith("mnt_id:"):
                return int(line.partition(":")[2])
    finally:
        os.close(fd)
    return -1
