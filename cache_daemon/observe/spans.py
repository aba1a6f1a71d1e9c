"""Spans: where the time of a request went. Nothing is recorded unless a tracer was set (otlp.py).

The daemon does not depend on OpenTelemetry: what is off costs a function call.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Span(Protocol):
    """What is under way."""

    def note(self, **what: str | float) -> None:
        """Say something about it."""


class Tracer(Protocol):
    """Records spans; the parent is the one of the current context, or the request's sender's."""

    def span(self, name: str, what: Mapping[str, str | int]) -> AbstractContextManager[Span]:
        """Record a block."""

    def past(self, name: str, began: float, ended: float, what: Mapping[str, str | int]) -> None:
        """Record what is over; times in seconds since the epoch."""


class _Silent:
    def note(self, **what: str | float) -> None:
        """Ignore."""


_SILENT = _Silent()
_tracers: list[Tracer] = []


def trace_with(tracer: Tracer | None) -> None:
    """Record with this tracer from now on, or with none."""
    _tracers[:] = [tracer] if tracer else []


@contextmanager
def span(name: str, **what: str | int) -> Iterator[Span]:
    """Record a block, and how it ended."""
    if not _tracers:
        yield _SILENT
        return
    with _tracers[0].span(name, what) as found:
        yield found


def past(name: str, began: float, ended: float, **what: str | int) -> None:
    """Record what is over; times in seconds since the epoch."""
    for tracer in _tracers:
        tracer.past(name, began, ended, what)
