"""Unfinished uploads, so that the next run continues where the registry says it stopped."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelpack.state.database import Database

_LONGEST_SECONDS: Final = 24 * 3600  # registries purge sessions after a day to a week


class DatabaseUploadLog:
    """An `oci.upload_log.UploadLog` that survives the process.

    A session whose process is gone, killed even, is free to be continued by the next one.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def claim(self, key: str) -> str:
        """Take over a session (see UploadLog)."""
        rows = self._database.query(
            "SELECT owner FROM uploads WHERE key=? AND moved>?",
            key, self._clock() - _LONGEST_SECONDS,
        )  # fmt: skip
        if not rows or _is_alive(str(rows[0][0])):
            return ""
        # Of two that see the same dead owner, one changes the row.
        rows = self._database.query(
            "UPDATE uploads SET owner=? WHERE key=? AND owner=? RETURNING location",
            _owner(os.getpid()), key, rows[0][0],
        )  # fmt: skip
        return str(rows[0][0]) if rows else ""

    def put(self, key: str, location: str) -> None:
        """Remember a location (see UploadLog)."""
        self._database.write(
            "INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?)",
            key, location, self._clock(), _owner(os.getpid()),
        )  # fmt: skip

    def release(self, key: str) -> None:
        """Let others continue (see UploadLog)."""
        self._database.write(
            "UPDATE uploads SET owner='' WHERE key=? AND owner=?", key, _owner(os.getpid())
        )

    def drop(self, key: str) -> None:
        """Forget a session (see UploadLog)."""
        self._database.write("DELETE FROM uploads WHERE key=?", key)


def _owner(pid: int) -> str:
    """Name a process so that no later one has its name; empty if there is no such process."""
    try:
        # The 22nd field is the start time in ticks; the second may hold spaces and brackets.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, IndexError):
        return ""
    return f"{pid} {started} {boot}"


def _is_alive(owner: str) -> bool:
    pid = owner.partition(" ")[0]
    return pid.isdecimal() and _owner(int(pid)) == owner
