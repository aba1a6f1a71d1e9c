"""Stopping many threads at once, with the first reason kept."""

import threading


class Stop:
    """A flag that workers poll, and the error that set it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def set(self, error: BaseException | None = None) -> None:
        """Ask everybody to stop; the first error given is the one that counts."""
        with self._lock:
            if self._error is None:
                self._error = error
        self._event.set()

    def is_set(self) -> bool:
        """Whether workers should stop."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep for `seconds`, or less if asked to stop; True if so."""
        return self._event.wait(seconds)

    def raise_if_failed(self) -> None:
        """Raise the error that stopped the work, if one did."""
        if self._error is not None:
            raise self._error
