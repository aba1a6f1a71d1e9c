"""Where unfinished uploads can be continued, remembered between runs."""

import threading
from typing import Protocol


class UploadLog(Protocol):
    """Locations of upload sessions, by registry, repository and digest. Thread-safe."""

    def get(self, key: str) -> str:
        """Return the location of the session, or nothing if none is known or it is too old."""

    def put(self, key: str, location: str) -> None:
        """Remember where the session can be continued."""

    def drop(self, key: str) -> None:
        """Forget the session."""


class MemoryUploadLog:
    """Remembers until the process ends."""

    def __init__(self) -> None:
        self._locations: dict[str, str] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> str:
        """Return the location (see UploadLog)."""
        with self._lock:
            return self._locations.get(key, "")

    def put(self, key: str, location: str) -> None:
        """Remember (see UploadLog)."""
        with self._lock:
            self._locations[key] = location

    def drop(self, key: str) -> None:
        """Forget (see UploadLog)."""
        with self._lock:
            self._locations.pop(key, None)
