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

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS used (
  key TEXT PRIMARY KEY, uses INTEGER NOT NULL, last REAL NOT NULL, clock REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), value REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """How a snapshot was used: how often, when last, and the eviction clock then."""

    uses: int = 1
    last: float = 0.0
    clock: float = 0.0


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
        with self._lock, self._db:
            self._db.execute(
                "INSERT INTO used VALUES (?, 1, ?, ?) ON CONFLICT (key) DO UPDATE"
                " SET uses = uses + 1, last = excluded.last, clock = excluded.clock",
                (key, time.time(), self._clock()),
            )

    def usage(self) -> dict[str, Usage]:
        """Return what is known of every snapshot."""
        with self._lock:
            rows = self._db.execute("SELECT key, uses, last, clock FROM used").fetchall()
        return {key: Usage(uses, last, clock) for key, uses, last, clock in rows}

    def evicted(self, key: str, worth: float) -> None:
        """Forget a snapshot; the clock moves on to what it was worth."""
        with self._lock, self._db:
            self._db.execute("DELETE FROM used WHERE key = ?", (key,))
            self._db.execute(
                "INSERT INTO clock VALUES (1, ?) ON CONFLICT (one) DO UPDATE"
                " SET value = max(value, excluded.value)",
                (worth,),
            )

    def keep_only(self, keys: Iterable[str]) -> None:
        """Forget all snapshots but these."""
        known = set(keys)
        with self._lock, self._db:
            for (key,) in self._db.execute("SELECT key FROM used").fetchall():
                if key not in known:
                    self._db.execute("DELETE FROM used WHERE key = ?", (key,))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _clock(self) -> float:
        row = self._db.execute("SELECT value FROM clock").fetchone()
        return float(row[0]) if row else 0.0


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.executescript(_SCHEMA)
    return connection
