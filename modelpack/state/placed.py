"""Which files earlier pulls put where: what a later pull may replace without asking.

A file counts as ours only in the very state in which it was placed. When the record is lost, or
the file was edited, it is the user's.
"""

from dataclasses import replace
from pathlib import Path

from modelpack.state.database import Database, key_of
from modelpack.state.digests import FileKey


class Placed:
    """The files that pulls placed in one directory."""

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._directory = key_of(directory)

    def paths(self) -> list[str]:
        """Return the paths placed here, or about to be when a pull was killed; edited or not."""
        rows = self._database.query(
            "SELECT path FROM placed WHERE directory=?1"
            " UNION SELECT path FROM placing WHERE directory=?1 ORDER BY path",
            self._directory,
        )
        return [str(row[0]) for row in rows]

    def owns(self, path: str, key: FileKey) -> bool:
        """Whether a pull placed the file at `path` in exactly this state."""
        rows = self._database.query(
            "SELECT stat FROM placed WHERE directory=? AND path=?", self._directory, path
        )
        if rows and rows[0][0] == key.packed():
            return True
        rows = self._database.query(
            "SELECT stat FROM placing WHERE directory=? AND path=?", self._directory, path
        )
        return bool(rows) and rows[0][0] == _without_ctime(key)

    def intend(self, path: str, key: FileKey) -> None:
        """Remember that the staged file in this state is about to be renamed to `path`."""
        self._database.write(
            "INSERT OR REPLACE INTO placing VALUES (?, ?, ?)",
            self._directory, path, _without_ctime(key),
        )  # fmt: skip

    def add(self, path: str, key: FileKey, manifest: str) -> None:
        """Remember that a pull of `manifest` placed the file at `path`."""
        self._database.write(
            "INSERT OR REPLACE INTO placed VALUES (?, ?, ?, ?)",
            self._directory, path, key.packed(), manifest,
        )  # fmt: skip
        self._database.write(
            "DELETE FROM placing WHERE directory=? AND path=?", self._directory, path
        )

    def drop(self, path: str) -> None:
        """Forget the file at `path`."""
        for table in ("placed", "placing"):
            self._database.write(
                f"DELETE FROM {table} WHERE directory=? AND path=?",  # noqa: S608
                self._directory, path,
            )  # fmt: skip


def _without_ctime(key: FileKey) -> bytes:
    # A rename changes it, and nothing else.
    return replace(key, ctime_ns=0).packed()
