"""How many bytes may come now: the arithmetic of limits, without waiting. Thread-safe."""

import threading
from collections.abc import Callable
from typing import Final

from modelpack.spec.limits import MIB

_LEAST_SLICE: Final = 4096


class Bucket:
    """At most `burst` + `rate` times seconds bytes in any span of time.

    Reservations are served in the order in which they were made: readers that each have one of at
    most `slice` bytes get the same. A slice is a 32nd of a second's bytes, the burst an eighth.
    """

    def __init__(self, rate: int, clock: Callable[[], float]) -> None:
        """`rate` in bytes per second, at least 1; `clock` in seconds."""
        self.slice = max(_LEAST_SLICE, min(MIB, rate // 32))
        self.burst = max(self.slice, rate // 8)
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock() - self.burst / rate

    def reserve(self, size: int) -> float:
        """Reserve 1..slice bytes; returns the seconds until they may be read, 0 for at once."""
        with self._lock:
            now = self._clock()
            full = now - self.burst / self._rate
            self._free_at = max(self._free_at, full) + size / self._rate
            return max(0.0, self._free_at - now)


class Share:
    """What may come beside something more urgent: so many bytes for each of its bytes.

    With a share of a quarter it is one byte for three, whatever the bandwidth is.
    """

    def __init__(self, share: float) -> None:
        """`share` of all bytes, 0..1; 1 is no bound."""
        self._per_byte = share / (1 - share) if share < 1 else None
        self._lock = threading.Lock()
        self._earned = 0.0

    def earn(self, size: int) -> None:
        """Urgent bytes come. What is not used is kept up to 1 MiB: no flood after a pause."""
        if self._per_byte is not None:
            with self._lock:
                self._earned = min(self._earned + size * self._per_byte, MIB)

    def take(self, size: int) -> bool:
        """Take so many bytes, at most 1 MiB, if they have been earned; returns whether."""
        if self._per_byte is None:
            return True
        with self._lock:
            if self._earned < size:
                return False
            self._earned -= size
            return True
