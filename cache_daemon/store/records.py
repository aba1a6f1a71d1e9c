"""Small JSON files that are there completely, durably, or not at all."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from modelpack.disk.durable import sync, write_all
from modelpack.disk.errors import disk_errors

Record = TypeVar("Record")
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def write_record(path: Path, value: object) -> None:
    """Create or replace; after a crash at any instant it is the old one or the new one."""
    write_file(path, msgspec.json.encode(value))


def write_file(path: Path, data: bytes) -> None:
    """Create or replace a file with these bytes, durably."""
    temporary = path.with_name(f".{path.name}")
    with disk_errors("write", path):
        try:
            fd = os.open(temporary, _FLAGS, 0o600)
            try:
                write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            temporary.replace(path)
        except OSError:
            # On a full disk it would take the last block or inode until the next start.
            with suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """Read a record; None if there is none, or if it is damaged and says nothing."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def remove_record(path: Path) -> bool:
    """Remove durably; returns whether it was there."""
    with disk_errors("remove", path):
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        sync(path.parent)
    return True


@dataclass
class Records(Generic[Record]):
    """A directory of records and what it holds, in memory. A change counts when it is durable."""

    directory: Path
    kind: type[Record]
    held: dict[str, Record]

    @classmethod
    def load(cls, directory: Path, kind: type[Record]) -> "Records[Record]":
        """Read all; damaged ones, and those that a crash left half-written, are taken away."""
        records = cls(directory, kind, {})
        for path in directory.iterdir():
            record = read_record(path, kind)
            if record is None:
                remove_record(path)
            else:
                records.held[path.stem] = record
        return records

    def put(self, name: str, record: Record) -> None:
        """Create or replace a record."""
        write_record(self.directory / f"{name}.json", record)
        self.held[name] = record

    def drop(self, name: str) -> bool:
        """Remove a record; returns whether it was there."""
        # In this order: what could not be removed holds on, as it does after a restart.
        there = remove_record(self.directory / f"{name}.json")
        self.held.pop(name, None)
        return there
