"""Where unfinished uploads can be continued, remembered between runs."""

import threading
from typing import Protocol


class UploadLog(Protocol):
    """Locations of upload sessions, by registry, repository and digest. Thread-safe.

    A session has one user at a time: two that append to it would damage each other's upload.
    """

    def claim(self, key: str) -> str:
        """Take over the session, if one is known, is not too old and has no living user.

        Returns its location, or nothing.
        """

    def put(self, key: str, location: str) -> None:
        """Remember where the session can be continued; it is in use by us."""

    def release(self, key: str) -> None:
        """Let the session be continued by whoever comes next."""

    def drop(self, key: str) -> None:
        """Forget the session."""


class MemoryUploadLog:
    """Remembers until the process ends."""

    def __init__(self) -> None:
        self._locations: dict[str, str] = {}
        self._used: set[str] = set()
        self._lock = threading.Lock()

    def claim(self, key: str) -> str:
        """Take over (see UploadLog)."""
        with self._lock:
            location = "" if key in self._used else self._locations.get(key, "")
            if location:
                self._used.add(key)
            return location

    def put(self, key: str, location: str) -> None:
        """Remember (see UploadLog)."""
        with self._lock:
            self._locations[key] = location
            self._used.add(key)

    def release(self, key: str) -> None:
        """Let others continue (see UploadLog)."""
        with self._lock:
            self._used.discard(key)

    def drop(self, key: str) -> None:
        """Forget (see UploadLog)."""
        with self._lock:
            self._locations.pop(key, None)
            self._used.discard(key)
