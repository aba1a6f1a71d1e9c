"""One small SQLite file under the user's cache directory, shared by concurrent runs.

Losing it costs time, never correctness: every table is a memory of work that can be done again.
"""

import os
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

_SCHEMA_VERSION: Final = 2
_SCHEMA: Final = """
CREATE TABLE files (key BLOB PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE layers (key BLOB PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE uploads (key TEXT PRIMARY KEY, location TEXT NOT NULL, moved REAL NOT NULL,
                      owner TEXT NOT NULL);
CREATE TABLE homes (registry TEXT, digest TEXT, repository TEXT,
                    PRIMARY KEY (registry, digest, repository)) WITHOUT ROWID;
CREATE TABLE placed (directory TEXT, path TEXT, stat BLOB NOT NULL, manifest TEXT NOT NULL,
                     PRIMARY KEY (directory, path)) WITHOUT ROWID;
CREATE TABLE placing (directory TEXT, path TEXT, stat BLOB NOT NULL,
                      PRIMARY KEY (directory, path)) WITHOUT ROWID;
CREATE TABLE pulled (directory TEXT PRIMARY KEY, reference TEXT NOT NULL, digest TEXT NOT NULL,
                     chunk_index BLOB NOT NULL);
"""


def default_path() -> Path:
    """Where the database lives: $XDG_CACHE_HOME/modelpack, else ~/.cache/modelpack."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: relative paths are invalid and to be ignored.
    directory = Path(base) if base.startswith("/") else Path.home().absolute() / ".cache"
    return directory / "modelpack" / f"state-v{_SCHEMA_VERSION}.sqlite"


def key_of(path: Path) -> str:
    """Return a path as text that SQLite takes, whatever bytes it is made of."""
    return os.fsencode(path).decode(errors="backslashreplace")


class Database:
    """A connection shared by the threads of one process.

    Where the file cannot be created, is damaged or is locked for long, everything is kept in
    memory instead: a cache must never be the reason that a push fails.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._connection = _open(path)

    def query(self, sql: str, *arguments: object) -> list[tuple[object, ...]]:
        """Return all rows; none where the file cannot be read."""
        with self._lock:
            try:
                return self._connection.execute(sql, arguments).fetchall()
            except sqlite3.Error:
                return []

    def write(self, sql: str, *arguments: object) -> None:
        """Execute and commit; forgotten where the file cannot be written."""
        with self._lock, suppress(sqlite3.Error), self._connection:
            self._connection.execute(sql, arguments)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


def _open(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _prepared(str(path))
        except sqlite3.OperationalError:
            pass  # locked, or not to be written
        except sqlite3.DatabaseError:
            with suppress(OSError, sqlite3.Error):
                path.unlink()  # damaged: what it held can be found out again
                return _prepared(str(path))
        except (OSError, RuntimeError):
            pass
    return _prepared(":memory:")


def _prepared(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, timeout=5, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
        connection.execute("COMMIT")
    except sqlite3.Error:
        connection.close()
        raise
    return connection
