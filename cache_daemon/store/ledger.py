"""How often and when snapshots were used: what eviction wants to know and no file says.

Losing it costs worse guesses, nothing else: everything that must be right is in the files.
"""

import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_daemon.space.evict import HALF_LIFE, decayed

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS usage (
  key TEXT PRIMARY KEY, uses INTEGER NOT NULL, last REAL NOT NULL, recent REAL NOT NULL
) WITHOUT ROWID;
"""
_SELECT: Final = "SELECT key, uses, last, recent FROM usage"
_FORGOTTEN: Final = 10 * HALF_LIFE


@dataclass(frozen=True, slots=True)
class Usage:
    """How a snapshot was used: how often since it came, when last, what all uses counted then."""

    uses: int = 1
    last: float = 0.0
    recent: float = 1.0

    def counts(self, now: float) -> float:
        """Return what the uses count now."""
        return decayed(self.recent, now - self.last)


class Ledger:
    """One SQLite file. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = _opened(path)
        except sqlite3.DatabaseError:
            for name in (
                path,
                path.with_name(f"{path.name}-wal"),
                path.with_name(f"{path.name}-shm"),
            ):
                name.unlink(missing_ok=True)
            self._db = _opened(path)

    def touch(self, key: str) -> None:
        """A snapshot is used now."""
        now = time.time()
        with self._lock, self._db:
            row = self._db.execute(f"{_SELECT} WHERE key = ?", (key,)).fetchone()
            before = Usage(*row[1:]) if row else Usage(0, now, 0.0)
            after = (key, before.uses + 1, now, before.counts(now) + 1)
            self._db.execute("REPLACE INTO usage VALUES (?, ?, ?, ?)", after)

    def usage(self) -> dict[str, Usage]:
        """Return what is known of every snapshot, also of those that were evicted."""
        with self._lock:
            rows = self._db.execute(_SELECT).fetchall()
        return {key: Usage(uses, last, recent) for key, uses, last, recent in rows}

    def gone(self, key: str) -> None:
        """A snapshot is not here any more; what it was used counts if it is back within a month."""
        with self._lock, self._db:
            self._db.execute("UPDATE usage SET uses = 0 WHERE key = ?", (key,))
            since = time.time() - _FORGOTTEN
            self._db.execute("DELETE FROM usage WHERE uses = 0 AND last < ?", (since,))

    def keep_only(self, keys: Iterable[str]) -> None:
        """All but these are gone."""
        for key in self.usage().keys() - set(keys):
            self.gone(key)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.executescript(_SCHEMA)
    return connection
