"""One fetch under way: who waits for it, how far it is, how it ended."""

import math
import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass, field

from cache_daemon.api.errors import Cancelled
from cache_daemon.api.values import Priority, Snapshot, State
from cache_daemon.fetch.arriving import Arriving
from cache_daemon.fetch.request import Wanted
from modelpack.transfer.stop import Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A fetch as others see it. Bytes and seconds; `phase` is what is being done."""

    key: str
    reference: str
    state: State
    priority: Priority
    phase: str
    bytes_total: int
    bytes_done: int
    bytes_per_second: float
    waiters: int
    error: str = ""
    hint: str = ""
    retry: bool = False


class Job:
    """A fetch. Thread-safe; also the `Listener` that the fetch tells about itself."""

    def __init__(self, wanted: Wanted, priority: Priority, number: int) -> None:
        self.wanted = wanted
        self.number = number
        self.stop = Stop()
        self.state = State.QUEUED
        self.snapshot: Snapshot | None = None
        self.error: Exception | None = None
        self.model: Arriving | None = None
        self.due = math.inf  # a time
        self.context = copy_context()  # of who asked first: the fetch is done on its behalf
        self._changed = threading.Condition()
        self._waiters: dict[int, Priority] = {}
        self._last = priority
        self._phases: dict[str, _Phase] = {}
        self._phase = ""
        self._next = 0
        self._created = self._begun = time.monotonic()
        self._disappointed = -math.inf

    # Who waits.

    def join(self, priority: Priority) -> int:
        """Wait for it, too; the returned number leaves again."""
        with self._changed:
            self._next += 1
            self._waiters[self._next] = priority
            self._changed.notify_all()
            return self._next

    def leave(self, waiter: int) -> int:
        """Wait no more; returns how many still do."""
        with self._changed:
            self._last = self._waiters.pop(waiter, self._last)
            return len(self._waiters)

    @property
    def waiters(self) -> int:
        """How many wait for it."""
        with self._changed:
            return len(self._waiters)

    @property
    def priority(self) -> Priority:
        """The most urgent reason; one that nobody waits for is a prefetch at best."""
        with self._changed:
            reasons = list(self._waiters.values())
            demoted = max(self._last, Priority.PREFETCH, key=lambda one: one.rank)
            return min(reasons, key=lambda one: one.rank, default=demoted)

    # How far it is.

    def bar(self, name: str, /) -> "_Phase":
        """Return the progress of a phase (see Reporter)."""
        with self._changed:
            self._phase = name
            return self._phases.setdefault(name, _Phase())

    def arriving(self, model: Arriving, /) -> None:
        """From now on bytes can be read while they come (see Listener)."""
        with self._changed:
            self.model = model
            self._changed.notify_all()

    def wait_for_bytes(self, seconds: float) -> Arriving | None:
        """Wait until bytes can be read while they come; None if that is not so by then."""
        with self._changed:
            self._changed.wait_for(lambda: self.over or self.model, seconds)
            return self.model

    def status(self) -> Status:
        """Return how it is now."""
        priority = self.priority
        with self._changed:
            fetching = self._phases.get("fetching", _Phase())
            error = self.error
            return Status(
                key=self.wanted.key,
                reference=self.wanted.name,
                state=self.state,
                priority=priority,
                phase=self._phase,
                bytes_total=fetching.expected,
                bytes_done=fetching.done,
                bytes_per_second=round(fetching.rate()),
                waiters=len(self._waiters),
                error=str(error) if error else "",
                hint=str(getattr(error, "hint", "")),
                retry=not getattr(error, "permanent", True) if error else False,
            )

    def watch(self, every: float) -> Iterator[Status]:
        """Yield its status now, whenever it changes its state, and `every` so many seconds."""
        while True:
            status = self.status()
            yield status
            if status.state in (State.READY, State.FAILED, State.CANCELLED):
                return
            with self._changed:
                if self.state == status.state:
                    self._changed.wait(every)

    # How it ends.

    def durations(self) -> dict[str, float]:
        """Return the seconds of each phase so far (see Listener)."""
        with self._changed:
            waited = {"waiting": round(self._begun - self._created, 3)}
            took = {name: round(one.ended - one.started, 3) for name, one in self._phases.items()}
            return {**waited, **took}

    def begin(self) -> None:
        """It is being fetched now."""
        self._begun = time.monotonic()
        self._become(State.FETCHING)

    def succeed(self, snapshot: Snapshot) -> None:
        """It is here."""
        self.snapshot = snapshot
        self._become(State.READY)

    def fail(self, error: Exception) -> None:
        """It will not come."""
        self.error = error
        self._become(State.CANCELLED if isinstance(error, Cancelled) else State.FAILED)

    def stalled(self) -> None:
        """Who reads along has waited for too long."""
        with self._changed:
            self._disappointed = time.monotonic()

    def disappointed(self, seconds: float) -> bool:
        """Whether it failed, or stalled for who reads along, not longer ago than that."""
        with self._changed:
            return time.monotonic() - self._disappointed < seconds

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state in (State.READY, State.FAILED, State.CANCELLED)

    def wait(self, seconds: float | None = None) -> Snapshot | None:
        """Wait for the end; returns the snapshot, or None if it is not over by then.

        Raises the error that it ended with.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.over, seconds)
            if self.error is not None:
                raise self.error
            return self.snapshot

    def _become(self, state: State) -> None:
        with self._changed:
            self.state = state
            if state is State.FAILED:
                self._disappointed = time.monotonic()
            self._changed.notify_all()


@dataclass(slots=True)
class _Phase:
    """A `Progress` that remembers."""

    expected: int = 0
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    ended: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, bytes_: int, /) -> None:
        with self._lock:
            self.expected += bytes_

    def advance(self, bytes_: int, /) -> None:
        with self._lock:
            self.done += bytes_
            self.ended = time.monotonic()

    def rate(self) -> float:
        return self.done / max(0.001, time.monotonic() - self.started)
