"""How often and when snapshots were used: what eviction wants to know and no file says.

Losing it costs worse guesses, nothing else: everything that must be right is in the files. So
nothing here raises: a disk that cannot write costs a line in the log.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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
_log = logging.getLogger("cache_daemon.ledger")


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
        self._failing = False
        try:
            self._db = _repaired(path)
        except (sqlite3.Error, OSError) as error:
            _log.warning("%s cannot be used, so it is kept in memory: %s", path, error)
            self._db = _opened(":memory:")

    def touch(self, key: str) -> None:
        """A snapshot is used now."""
        now = time.time()
        with self._trying():
            row = self._db.execute(f"{_SELECT} WHERE key = ?", (key,)).fetchone()
            before = Usage(*row[1:]) if row else Usage(0, now, 0.0)
            after = (key, before.uses + 1, now, before.counts(now) + 1)
            self._db.execute("REPLACE INTO usage VALUES (?, ?, ?, ?)", after)

    def usage(self) -> dict[str, Usage]:
        """Return what is known of every snapshot, also of those that were evicted."""
        rows = []
        with self._trying():
            rows = self._db.execute(_SELECT).fetchall()
        return {key: Usage(uses, last, recent) for key, uses, last, recent in rows}

    def gone(self, key: str) -> None:
        """A snapshot is not here any more; what it was used counts if it is back within a month."""
        with self._trying():
            self._db.execute("UPDATE usage SET uses = 0 WHERE key = ?", (key,))
            since = time.time() - _FORGOTTEN
            self._db.execute("DELETE FROM usage WHERE uses = 0 AND last < ?", (since,))

    def keep_only(self, keys: Iterable[str]) -> None:
        """All but these are gone."""
        for key in self.usage().keys() - set(keys):
            self.gone(key)

    def close(self) -> None:
        """Close the file."""
        with self._lock, suppress(sqlite3.Error):
            self._db.close()

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Hold the lock and a transaction; what SQLite raises is logged when it begins."""
        with self._lock:
            try:
                with self._db:
                    yield
            except sqlite3.Error as error:
                if not self._failing:
                    _log.warning("uses of models are not noted: %s", error)
                self._failing = True
            else:
                self._failing = False


def _repaired(path: Path) -> sqlite3.Connection:
    try:
        return _opened(path)
    except sqlite3.OperationalError:
        raise  # the disk, not the file
    except sqlite3.DatabaseError:
        for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            name.unlink(missing_ok=True)
        return _opened(path)


def _opened(path: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        # Ours alone, so that no memory is mapped to it: touching that on a dead disk would kill us.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection
