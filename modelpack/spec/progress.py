"""How long work tells the world about itself, without knowing who listens."""

import threading
from typing import Protocol


class Progress(Protocol):
    """Hears about bytes. Called from many threads at once; must be quick and never raise."""

    def expect(self, bytes_: int, /) -> None:
        """So many more bytes are to be handled."""

    def advance(self, bytes_: int, /) -> None:
        """So many bytes were handled; negative when some must be handled again."""


class Reporter(Protocol):
    """Shows one progress per kind of work: "hashing", "uploading", "fetching"."""

    def bar(self, name: str, /) -> Progress:
        """Return the progress called `name`; it appears when it expects something."""


class Quiet:
    """A reporter, and a progress, that nobody listens to."""

    def bar(self, name: str, /) -> Progress:  # noqa: ARG002
        """Return itself."""
        return self

    def expect(self, bytes_: int, /) -> None:
        """Ignore."""

    def advance(self, bytes_: int, /) -> None:
        """Ignore."""


class Counter:
    """A progress that counts, and passes everything on."""

    def __init__(self, listener: Progress) -> None:
        self._listener = listener
        self._lock = threading.Lock()
        self.total = 0

    def expect(self, bytes_: int, /) -> None:
        """Pass on."""
        self._listener.expect(bytes_)

    def advance(self, bytes_: int, /) -> None:
        """Count and pass on."""
        with self._lock:
            self.total += bytes_
        self._listener.advance(bytes_)


QUIET = Quiet()
