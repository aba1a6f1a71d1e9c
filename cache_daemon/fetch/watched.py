"""Fetches that are told of: begin and end in the log, in numbers, and as spans."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from cache_daemon.api.errors import Cancelled
from cache_daemon.api.values import Priority, Snapshot
from cache_daemon.fetch.arriving import Arriving, Listener
from cache_daemon.fetch.request import Wanted
from cache_daemon.observe.counts import Counts
from cache_daemon.observe.spans import Span, past, span
from modelpack.spec.progress import Progress
from modelpack.transfer.stop import Stop

_log = logging.getLogger("cache_daemon.fetch")


class Fetches(Protocol):
    """What does the work."""

    def fetch(self, wanted: Wanted, listener: Listener, stop: Stop) -> Snapshot:
        """Bring the model here (see Fetcher)."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Wraps what does the work; changes nothing."""

    inner: Fetches
    counts: Counts

    def fetch(self, wanted: Wanted, listener: Listener, stop: Stop) -> Snapshot:
        """Bring the model here (see Fetcher)."""
        what = {
            "reference": wanted.name,
            "key": wanted.key,
            "digest": str(wanted.artifact.digest),
        }
        told = _Told(listener, self.counts)
        with span("fetch", **what) as here, self._outcome(what, here), self.counts.watching():
            _log.info("fetch begins", extra={**what, "priority": listener.priority.value})
            started = time.monotonic()
            try:
                snapshot = self.inner.fetch(wanted, told, stop)
            finally:
                told.end()
            self.counts.received_bytes.add("disk", snapshot.bytes_reused)
            moved = {"bytes_fetched": snapshot.bytes_fetched, "bytes_reused": snapshot.bytes_reused}
            here.note(**moved)
            took = round(time.monotonic() - started, 3)
            _log.info("fetch ended", extra={**what, **moved, "seconds": took})
        return snapshot

    @contextmanager
    def _outcome(self, what: dict[str, str], here: Span) -> Iterator[None]:
        started = time.monotonic()
        outcome = "failed"
        try:
            yield
            outcome = "ready"
        except Cancelled:
            outcome = "cancelled"
            _log.info("fetch cancelled", extra=what)
            raise
        except Exception as error:
            _log.warning("fetch failed", extra={**what, **_why(error)})
            raise
        finally:
            here.note(outcome=outcome)
            self.counts.fetches.observe(outcome, time.monotonic() - started)


def _why(error: Exception) -> dict[str, str | bool]:
    retry = not getattr(error, "permanent", True)
    return {"error": str(error), "kind": type(error).__name__, "retry": retry}


@dataclass(slots=True)
class _Told:
    """Passes on what the fetch tells, and listens."""

    listener: Listener
    counts: Counts
    phases: dict[str, "_Phase"] = field(default_factory=dict)
    reusing: float = 0.0

    @property
    def priority(self) -> Priority:
        """How urgent it is now."""
        return self.listener.priority

    def durations(self) -> dict[str, float]:
        """Return the seconds of each phase (see Listener)."""
        return self.listener.durations()

    def arriving(self, model: Arriving, /) -> None:
        """From now on bytes can be read while they come (see Listener)."""
        self.listener.arriving(model)
        self.reusing = time.time()

    def bar(self, name: str, /) -> Progress:
        """Return the progress of a phase (see Reporter)."""
        received = self.counts if name == "fetching" else None
        return self.phases.setdefault(name, _Phase(self.listener.bar(name), received))

    def end(self) -> None:
        """All phases are over: record them. Between staging and fetching, chunks are reused."""
        fetching = self.phases.get("fetching")
        if fetching and self.reusing:
            past("reuse", self.reusing, fetching.began)
        for name, phase in self.phases.items():
            past(name, phase.began, phase.ended, bytes=phase.done)


@dataclass(slots=True)
class _Phase:
    """A `Progress` that counts what comes from the registry while it comes."""

    inner: Progress
    counts: Counts | None
    began: float = field(default_factory=time.time)
    ended: float = field(default_factory=time.time)
    done: int = 0

    def expect(self, bytes_: int, /) -> None:
        """Pass on."""
        self.inner.expect(bytes_)

    def advance(self, bytes_: int, /) -> None:
        """Count and pass on."""
        self.inner.advance(bytes_)
        self.done += bytes_  # for the span; nearly right is right enough
        self.ended = time.time()
        if self.counts:
            self.counts.received_bytes.add("registry", bytes_)
