"""Whether bytes keep coming: a connection that is held open for its own sake is given up."""

import threading
import time
from collections.abc import Callable
from typing import Final

from modelpack.spec import limits

_LARGEST_SLICE: Final = 4 * limits.MIB


class Pace:
    """At least `slowest` bytes per second are expected over every `window` seconds.

    Only time spent in reads counts: a slow reader is not the sender's fault. One read may ask for
    `slice` bytes.
    """

    def __init__(
        self,
        window: float,
        slowest: int,
        stop: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stop` ends a read that is under way, from another thread."""
        self._window = window
        self._slowest = slowest
        self._stop = stop
        self._clock = clock
        self._reading_since: float | None = None
        self._waited = 0.0
        self._received = 0
        self.too_slow = False
        # A read that is under way has brought nothing yet: at the slowest rate it may take a
        # window. A sender that has shown to be faster is asked for more at a time.
        self._least = self.slice = max(1, int(slowest * window))

    def start(self) -> None:
        """A read begins."""
        self._reading_since = self._clock()

    def end(self, received: int) -> None:
        """A read is over and brought so many bytes."""
        since, self._reading_since = self._reading_since, None
        took = self._clock() - since if since is not None else 0.0
        self._received += received
        self._waited += took
        if took > self._window / 16:
            self.slice = self._least
        elif received >= self.slice:
            self.slice = min(2 * self.slice, _LARGEST_SLICE)
        self._judge(self._waited)

    def look(self) -> None:
        """Judge a read that is under way; for another thread."""
        since = self._reading_since
        if since is not None:
            self._judge(self._waited + self._clock() - since)

    def _judge(self, waited: float) -> None:
        if waited < self._window:
            return
        if self._received < self._slowest * waited:
            self.too_slow = True
            self._stop()
        elif self._reading_since is None:
            self._waited, self._received = 0.0, 0


class Watch:
    """Looks at the pace of all answers that are being read.

    From a thread of its own: a read that waits for its last byte cannot look at the clock, and
    reading less at a time costs a third of the throughput with TLS.
    """

    def __init__(self, seconds: float) -> None:
        """Look every so many seconds."""
        self._seconds = seconds
        self._paces: set[Pace] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, pace: Pace) -> None:
        """Look at this one, too."""
        with self._lock:
            self._paces.add(pace)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pace", daemon=True)
                self._thread.start()

    def remove(self, pace: Pace) -> None:
        """Look at this one no more."""
        with self._lock:
            self._paces.discard(pace)

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._seconds):
            with self._lock:
                paces = list(self._paces)
                if not paces:
                    self._thread = None
                    return
            for pace in paces:
                pace.look()
