"""Keeps promises: prefetches are tried again, also by the next daemon, until they are here."""

import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import Final

from cache_daemon.api.errors import Cancelled, Draining
from cache_daemon.api.values import Want
from cache_daemon.fetch.finding import Ask, Finder
from cache_daemon.fetch.job import Job
from cache_daemon.fetch.queue import Queue
from cache_daemon.fetch.request import Wanted
from cache_daemon.store.store import Store
from modelpack.spec.errors import Denied, DiskError, ModelpackError, Unauthorized

_PERIOD: Final = 10.0  # seconds between two looks at what there is to do
_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 600.0
_log = logging.getLogger("cache_daemon.keeper")


@dataclass(slots=True)
class _Try:
    failures: int = 0
    next: float = 0.0
    error: Exception | None = None


class Keeper:
    """A thread. Credentials are kept in memory as long as a model is wanted, and not longer."""

    def __init__(self, store: Store, queue: Queue, finder: Finder) -> None:
        self._store = store
        self._queue = queue
        self._finder = finder
        self._lock = threading.Lock()
        self._asks: dict[str, Ask] = {}
        self._tries: dict[str, _Try] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="keeper")
        queue.ended = self._ended

    def start(self) -> None:
        """Begin with what an earlier daemon was asked for."""
        self._thread.start()

    def close(self) -> None:
        """End soon."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def want(self, ask: Ask, wanted: Wanted) -> None:
        """Fetch a model, whatever it takes. Raises Draining."""
        with self._lock:
            self._asks[wanted.key] = ask
            self._tries.pop(wanted.key, None)
        self._store.want(
            Want(
                key=wanted.key,
                reference=wanted.name,
                include=tuple(ask.include),
                exclude=tuple(ask.exclude),
                priority=ask.priority,
                namespace=ask.namespace,
                deadline=ask.deadline,
                created=time.time(),
            )
        )
        try:
            self._queue.submit(wanted, ask.priority, ask.deadline)
        except Draining:
            self._forget(wanted.key)
            raise

    def problem(self, key: str) -> Exception | None:
        """Return what is in the way of a wanted model."""
        with self._lock:
            found = self._tries.get(key)
        return found.error if found else None

    def waiting(self) -> dict[str, int]:
        """Return how many wanted models wait for a credential, and how many for another try."""
        with self._lock:
            pauses = [one.next for one in self._tries.values()]
        stuck = pauses.count(math.inf)
        return {"credential": stuck, "retry": len(pauses) - stuck}

    def round(self) -> None:
        """Do what is due: try again what is wanted, make room where others have taken it."""
        self._store.tidy()
        for want in self._store.wants():
            if self._store.has(want.key):
                self._forget(want.key)
                continue
            job = self._queue.job(want.key)
            if (job is None or job.over) and self._due(want.key):
                self._again(want)

    def _again(self, want: Want) -> None:
        with self._lock:
            ask = self._asks.get(want.key)
        ask = ask or Ask(
            ref=want.reference, include=want.include, exclude=want.exclude,
            priority=want.priority, namespace=want.namespace, deadline=want.deadline,
        )  # fmt: skip
        try:
            wanted = self._finder.resolve(ask)
            self._queue.submit(wanted, ask.priority, ask.deadline)
        except ModelpackError as error:
            self._failed(want.key, error)

    def _ended(self, job: Job, error: Exception | None) -> None:
        key = job.wanted.key
        if error is None or isinstance(error, Cancelled):
            self._forget(key)
        else:
            self._failed(key, error)

    def _failed(self, key: str, error: Exception) -> None:
        missing_right = isinstance(error, Unauthorized | Denied)
        # Somebody makes room, or mounts the disk again: nothing in the request has to change.
        passing = isinstance(error, DiskError) or not getattr(error, "permanent", True)
        if not passing and not missing_right:
            self._forget(key)
            return
        want = next((one for one in self._store.wants() if one.key == key), None)
        if want is None:
            return  # who waited for it has heard of it
        with self._lock:
            state = self._tries.setdefault(key, _Try())
            state.failures += 1
            state.error = error
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(10, state.failures - 1))
            # Asking again without another credential would get the same answer.
            state.next = math.inf if missing_right else time.monotonic() + pause
            if missing_right:
                self._asks.pop(key, None)
        words = "prefetch waits for a credential" if missing_right else "prefetch is tried again"
        model = {"reference": want.reference, "key": key}
        model["digest"] = want.reference.partition("@")[2]
        _log.warning(words, extra={**model, "error": str(error), "failures": state.failures})

    def _due(self, key: str) -> bool:
        with self._lock:
            state = self._tries.get(key)
        return state is None or time.monotonic() >= state.next

    def _forget(self, key: str) -> None:
        with self._lock:
            self._asks.pop(key, None)
            self._tries.pop(key, None)
        self._store.unwant(key)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self.round()
            except (ModelpackError, OSError) as error:
                self._store.counts.store_errors.add()
                _log.error("a round of the keeper failed: %s", error)
            self._closed.wait(_PERIOD)
