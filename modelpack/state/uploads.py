"""Unfinished uploads, so that the next run continues where the registry says it stopped."""

import time
from typing import Final

from modelpack.state.database import Database

_LONGEST_SECONDS: Final = 24 * 3600  # registries purge sessions after a day to a week


class DatabaseUploadLog:
    """An `oci.upload_log.UploadLog` that survives the process."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: str) -> str:
        """Return the location of a session that is not too old."""
        rows = self._database.query(
            "SELECT location FROM uploads WHERE key=? AND started>?",
            key, time.time() - _LONGEST_SECONDS,
        )  # fmt: skip
        return str(rows[0][0]) if rows else ""

    def put(self, key: str, location: str) -> None:
        """Remember a location."""
        self._database.write(
            "INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", key, location, time.time()
        )

    def drop(self, key: str) -> None:
        """Forget a session."""
        self._database.write("DELETE FROM uploads WHERE key=?", key)
