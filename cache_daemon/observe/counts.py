"""Numbers of what has happened since the start; serve/metrics.py shows them to Prometheus.

Plain Python: the store and the fetches count, and do not know who reads.
"""

import logging
import threading
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from cache_daemon.api.errors import NoSpace, Refused
from modelpack.spec.errors import Denied, DiskError, Unauthorized

_FETCH_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0, 1800.0, 7200.0)
_LEASE_SECONDS: Final = (0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_log = logging.getLogger("cache_daemon.store")


class Counter:
    """Counts by one label. Thread-safe; every label that is known at the start is shown from 0."""

    def __init__(self, *labels: str) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(labels or ("",), 0)

    def add(self, label: str = "", count: int = 1) -> None:
        """Count; less than nothing is nothing."""
        with self._lock:
            self._counts[label] = self._counts.get(label, 0) + max(0, count)

    def read(self) -> dict[str, int]:
        """Return the counts by label."""
        with self._lock:
            return dict(self._counts)


class Histogram:
    """How often something took how long, by one label. Thread-safe; `bounds` in seconds."""

    def __init__(self, bounds: Sequence[float], *labels: str) -> None:
        self.bounds = bounds
        self._lock = threading.Lock()
        self._counts = {label: [0] * (len(bounds) + 1) for label in labels}
        self._sums = dict.fromkeys(labels, 0.0)

    def observe(self, label: str, seconds: float) -> None:
        """It took so long."""
        with self._lock:
            self._counts[label][bisect_left(self.bounds, seconds)] += 1
            self._sums[label] += seconds

    def read(self) -> dict[str, tuple[list[int], float]]:
        """Return by label how many took at most each bound, and the sum of all."""
        with self._lock:
            found = {}
            for label, counts in self._counts.items():
                total = 0
                upto = [total := total + count for count in counts]
                found[label] = (upto, self._sums[label])
            return found


class Counts:
    """All of them; the names are those of docs/operations/metrics.md without the prefix."""

    def __init__(self) -> None:
        self.evictions = Counter("space", "quota", "prefetch_share", "disk")
        self.refusals = Counter("space", "quota", "prefetch_share", "denied", "artifact")
        self.received_bytes = Counter("registry", "disk")
        self.layers = Counter("proven", "wrong")
        self.damaged_files = Counter()
        self.store_errors = Counter()
        self.mirror_answers = Counter("disk", "arriving", "registry")
        self.mirror_bytes = Counter("disk", "arriving", "registry")
        self.fetches = Histogram(_FETCH_SECONDS, "ready", "failed", "cancelled")
        self.leases = Histogram(_LEASE_SECONDS, "held", "waiting", "failed")

    def damaged(self, ids: Collection[str]) -> None:
        """These files are not what they were when they came."""
        self.damaged_files.add(count=len(ids))
        _log.error("damaged files quarantined", extra={"files": ",".join(sorted(ids))})

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is refused, and what the disk does not do, in the block."""
        try:
            yield
        except NoSpace as error:
            self.refusals.add(error.limit)
            raise
        except Refused:
            self.refusals.add("artifact")
            raise
        except (Denied, Unauthorized):
            self.refusals.add("denied")
            raise
        except (DiskError, OSError):
            self.store_errors.add()
            raise
