"""The digest cache: what unchanged files and layers hash to, so that they are not read again.

A record is trusted for exactly the file it was made from: same device, inode, size, mtime and
ctime, in nanoseconds. Any write, rename, truncation or replacement changes one of them. Two gaps
are closed here: a file that changed while it was read (the key is taken before and after), and a
file so young that a later change could fall into the same clock tick (not remembered). One gap
cannot be seen by stat: a store into a shared mapping whose page was already dirty; hence
--no-digest-cache.
"""

import os
import struct
import time
from dataclasses import dataclass
from typing import Final

import xxhash

from modelpack.state.database import Database

YOUNG_SECONDS: Final = 2.0
_KEY: Final = struct.Struct("<5Q")


@dataclass(frozen=True, slots=True)
class FileKey:
    """What stat says about one state of one file."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "FileKey":
        """Take the key of a stat result."""
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def packed(self) -> bytes:
        """Return the key as bytes."""
        mask = (1 << 64) - 1
        return _KEY.pack(
            self.device & mask, self.inode, self.size, self.mtime_ns & mask, self.ctime_ns & mask
        )

    def settled(self, read_at: float) -> bool:
        """Whether the file was old enough at `read_at` (seconds since the epoch) to be trusted."""
        return read_at - max(self.mtime_ns, self.ctime_ns) / 1e9 >= YOUNG_SECONDS


class DigestCache:
    """Records keyed by file state and by everything else that decides the answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the record stored under `key` in "files" or "layers"; None if damaged."""
        rows = self._database.query(f"SELECT record FROM {table} WHERE key=?", key)  # noqa: S608
        record = rows[0][0] if rows else None
        if not isinstance(record, bytes) or record[:8] != _checksum(key, record[8:]):
            return None
        return record[8:]

    def put(self, table: str, key: bytes, record: bytes) -> None:
        """Remember `record`; the caller has checked that its files were settled."""
        self._database.write(
            f"INSERT OR REPLACE INTO {table} VALUES (?, ?)",  # noqa: S608
            key,
            _checksum(key, record) + record,
        )


class NoDigestCache(DigestCache):
    """Remembers nothing: --no-digest-cache."""

    def __init__(self) -> None:
        super().__init__(Database(None))

    def get(self, table: str, key: bytes) -> bytes | None:  # noqa: ARG002
        """Return None."""
        return None

    def put(self, table: str, key: bytes, record: bytes) -> None:
        """Forget."""


def now() -> float:
    """Seconds since the epoch, for FileKey.settled."""
    return time.time()


def fingerprint(*parts: bytes) -> bytes:
    """Return a short key for a list of byte strings; not for trust."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def _checksum(key: bytes, record: bytes) -> bytes:
    return xxhash.xxh3_64_digest(key + record)
