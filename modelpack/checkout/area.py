"""Where a pull may be prepared: a directory that is ours alone, with one holder at a time."""

import fcntl
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from modelpack.disk.durable import make_directories
from modelpack.disk.errors import disk_errors
from modelpack.disk.mount import mount_id
from modelpack.spec.errors import TargetConflict
from modelpack.spec.names import RESERVED_DIRECTORY

_MODE: Final = 0o600
_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
STAGED: Final = re.compile(r"[0-9a-f]{32}")  # a directory of ours: the start of a digest


def clear_leftovers(target: Path) -> None:
    """Remove what an interrupted pull of something else left, now that a pull has ended well."""
    root = beside(target)
    if root.is_dir() and not root.is_symlink():
        with disk_errors("clean up", root):
            lock = take(root)
            try:
                for entry in root.iterdir():
                    if STAGED.fullmatch(entry.name):
                        shutil.rmtree(entry, ignore_errors=True)
                remove_if_empty(root)
            finally:
                os.close(lock)


def beside(target: Path) -> Path:
    """Return the area for a target directory: beside it, so that it stays untouched.

    Inside it only where the parent is another file system or not ours to write. Raises
    TargetConflict where the target cannot be a directory of ours, DiskError.
    """
    parent = target.parent
    for place in (target, *target.parents):
        if place.exists():
            if not place.is_dir():
                raise TargetConflict(f"{place}: is a file; expected a directory to pull into")
            break
    if (target / "oci-layout").exists():
        raise TargetConflict(f"{target}: is an OCI layout", hint="pull into another directory")
    with disk_errors("prepare the pull in", parent):
        make_directories(parent)
        # By mount, not by device: a rename across two mounts of one file system fails, too.
        foreign = target.exists() and mount_id(target) != mount_id(parent)
        longest = os.pathconf(parent, "PC_NAME_MAX")
    beside = f".{target.name}{RESERVED_DIRECTORY}"
    crowded = len(os.fsencode(beside)) > longest
    if foreign or crowded or parent == target or not os.access(parent, os.W_OK):
        return target / RESERVED_DIRECTORY
    return parent / beside


def _check_ours(root: Path) -> None:
    """Refuse a directory that somebody else made: everything in ours may be removed by us."""
    check_private(root)
    for entry in root.iterdir():
        if entry.name != "lock" and not STAGED.fullmatch(entry.name):
            raise TargetConflict(
                f"{root}: holds {entry.name[:80]!r}, which modelpack did not put there",
                hint="move it away, or pull into another directory",
            )


def check_private(directory: Path) -> None:
    """Refuse a directory in which somebody else may have put, or may yet put, something.

    Its name can be guessed: in a directory that others may write to, somebody may have made it.
    """
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise TargetConflict(f"{directory}: is in the way", hint="move it away")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise TargetConflict(
            f"{directory}: belongs to somebody else, or others may write to it",
            hint="remove it, or pull into a directory of your own",
        )


def take(root: Path) -> int:
    """Create the area and hold it; returns the descriptor whose closing lets it go.

    Raises TargetConflict if somebody else holds it, or if anything in it is not ours.
    """
    while True:
        if not root.is_symlink():
            with suppress(FileExistsError):
                root.mkdir(mode=0o700, parents=True)
        _check_ours(root)
        try:
            fd = os.open(root / "lock", _LOCK_FLAGS, _MODE)
        except FileNotFoundError:
            continue  # the last holder removed the directory meanwhile
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the directory between our open and our lock.
            if os.path.samestat(os.fstat(fd), (root / "lock").stat()):
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(fd)
            raise TargetConflict(
                f"{root}: another modelpack pull is writing here", hint="wait for it to end"
            ) from None
        os.close(fd)


def remove_if_empty(directory: Path) -> None:
    """Remove the area if nothing but the lock is left; its holder calls this."""
    with suppress(OSError):
        # The lock goes last: while it is there nobody else starts here.
        if [entry.name for entry in directory.iterdir()] == ["lock"]:
            (directory / "lock").unlink()
        directory.rmdir()
