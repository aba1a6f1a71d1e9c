"""The directory of the store: its parts, its format version, one daemon at a time."""

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from cache_daemon.api.errors import BadStore
from cache_daemon.store.records import read_record, write_record
from modelpack.disk.durable import sync
from modelpack.disk.errors import disk_errors
from modelpack.disk.mount import file_system

VERSION: Final = 1
_PROBE: Final = "probe"
_RECORDS: Final = ("snapshots", "leases", "pins", "wants", "refused")
_PARTS: Final = ("files", "partial", "quarantine", *_RECORDS)
# Hard links, atomic renames and fsync that means it. Others may work; nobody has tried them.
_FILE_SYSTEMS: Final = ("ext4", "xfs", "btrfs", "tmpfs")


class Root:
    """An open store directory; holds the lock until it is closed."""

    def __init__(self, path: Path) -> None:
        """Create or open; raises BadStore for what is not ours, DiskError."""
        self.path = path
        with disk_errors("open the cache", path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_file_system(path)
            self._lock = _locked(path)
            try:
                _check_version(path)
                for part in _PARTS:
                    (path / part).mkdir(mode=0o700, exist_ok=True)
                # A daemon that was killed may not have come to it. We promise what it left, and
                # what it began to remove must have lost its name before anything in it goes.
                for directory in (path, *(path / part for part in _PARTS)):
                    sync(directory)
                self._drop_debris()
            except BaseException:
                os.close(self._lock)
                raise

    @property
    def files(self) -> Path:
        """Complete files, `<xx>/<id>`, 0444."""
        return self.path / "files"

    @property
    def snapshots(self) -> Path:
        """One directory per snapshot: its record, its chunk index, its tree."""
        return self.path / "snapshots"

    @property
    def leases(self) -> Path:
        """One record per lease."""
        return self.path / "leases"

    @property
    def pins(self) -> Path:
        """One record per pin."""
        return self.path / "pins"

    @property
    def wants(self) -> Path:
        """One record per fetch that is not done."""
        return self.path / "wants"

    @property
    def refused(self) -> Path:
        """One record per artifact that was found to lie."""
        return self.path / "refused"

    @property
    def quarantine(self) -> Path:
        """Trees with damaged files, kept while somebody has them mounted."""
        return self.path / "quarantine"

    def partial(self, key: str) -> Path:
        """Return the staging area of a snapshot that is being fetched."""
        return self.path / "partial" / key

    def probe(self) -> None:
        """Write a small file, make it durable, remove it. Raises OSError."""
        path = self.path / _PROBE
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"?")
            os.fsync(fd)
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process have it; closing it again changes nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _drop_debris(self) -> None:
        """Remove what a crash left half-made or half-removed; it never had a name."""
        for part in _RECORDS:
            for entry in (self.path / part).iterdir():
                if entry.name.startswith("."):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _check_file_system(path: Path) -> None:
    kind = file_system(path)
    if kind not in _FILE_SYSTEMS:
        raise BadStore(
            f"{path}: is on {kind}; expected one of {', '.join(_FILE_SYSTEMS)}",
            hint="choose a directory on a local disk: --root",
        )


def _locked(path: Path) -> int:
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise BadStore(
            f"{path}: another daemon is using it", hint=f"see who: fuser -v {path}/lock"
        ) from None
    return fd


def _sync_parents(path: Path) -> None:
    """Make the name of a new store durable, and those of the directories made for it."""
    device = path.stat().st_dev
    for parent in path.resolve().parents:
        if parent.stat().st_dev != device:
            break
        with suppress(PermissionError):  # then it is not ours, and older than the store
            sync(parent)


def _check_version(path: Path) -> None:
    record = read_record(path / "format.json", dict)
    if record is None:
        # What was there when the first start ended too early is no stranger, nor is what every new
        # ext4 has.
        ours = ("lock", ".format.json", "lost+found")
        strangers = [one.name for one in path.iterdir() if one.name not in ours]
        if strangers:
            raise BadStore(
                f"{path}: holds {strangers[0]!r} and is no cache",
                hint="choose an empty directory: --root",
            )
        _sync_parents(path)
        write_record(path / "format.json", {"format": "modelpack-cache", "version": VERSION})
    elif record.get("format") != "modelpack-cache" or record.get("version") != VERSION:
        raise BadStore(
            f"{path}: is of version {record.get('version')!r}; this program reads {VERSION}",
            hint="use the program that wrote it, or another directory",
        )
