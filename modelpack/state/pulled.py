"""What was last pulled into a directory, so that it can be verified without the registry."""

from dataclasses import dataclass
from pathlib import Path

from modelpack.state.database import Database, key_of


@dataclass(frozen=True, slots=True)
class LastPull:
    """A pull that ended well: what was asked for, what it was, its chunk index."""

    reference: str
    digest: str
    index: bytes


class Pulled:
    """The last pull of every directory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, directory: Path) -> LastPull | None:
        """Return the last pull into `directory`, if it is remembered."""
        rows = self._database.query(
            "SELECT reference, digest, chunk_index FROM pulled WHERE directory=?", key_of(directory)
        )
        if not rows or not isinstance(rows[0][2], bytes):
            return None
        return LastPull(str(rows[0][0]), str(rows[0][1]), rows[0][2])

    def drop(self, directory: Path) -> None:
        """Forget the last pull: what is there now cannot be verified without the registry."""
        self._database.write("DELETE FROM pulled WHERE directory=?", key_of(directory))

    def put(self, directory: Path, pull: LastPull) -> None:
        """Remember a pull."""
        self._database.write(
            "INSERT OR REPLACE INTO pulled VALUES (?, ?, ?, ?)",
            key_of(directory), pull.reference, pull.digest, pull.index,
        )  # fmt: skip
