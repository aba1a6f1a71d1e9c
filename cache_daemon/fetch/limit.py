"""Limits per registry, shared by all fetches: connections, bandwidth, pods before prefetches."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from cache_daemon.fetch.bucket import Bucket, Share
from modelpack.spec.errors import Unavailable
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import Descriptor
from modelpack.spec.source import BlobSource, ByteStream
from modelpack.transfer.stop import Stop

_POLL_SECONDS: Final = 0.1  # how late a stopped fetch may notice it


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLimits:
    """What one registry host may be asked for at a time.

    `connections` streams at once, of which half, rounded down, are kept for pods.
    `bytes_per_second` of all streams, 0 for no bound. While a pod's stream is open, prefetches get
    at most `prefetch_share` of the bytes; but each goes on with a slice after waiting `patience`
    seconds, so that it neither starves nor times out.
    """

    connections: int = 8
    bytes_per_second: int = 0
    prefetch_share: float = 0.25
    patience: float = 1.0


@dataclass(frozen=True, eq=False, slots=True)
class Reader:
    """On whose behalf bytes are read. `urgent` says whether a pod waits now; it may change."""

    stop: Stop
    urgent: Callable[[], bool]

    def check(self) -> None:
        """Raise the error that the fetch was stopped with."""
        if self.stop.is_set():
            self.stop.raise_if_failed()
            raise Unavailable("the fetch was stopped")


class Sources:
    """All registry hosts that are being fetched from. Thread-safe."""

    def __init__(
        self,
        limits: SourceLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or SourceLimits()
        self._clock = clock
        self._lock = threading.Lock()
        # Forgotten with the last fetch: who names many hosts costs no memory.
        self._hosts: WeakValueDictionary[str, Host] = WeakValueDictionary()

    def limited(self, source: BlobSource, host: str, reader: Reader) -> "LimitedSource":
        """Return a source that shares the limits of its host with all others."""
        with self._lock:
            found = self._hosts.get(host)
            if found is None:
                found = self._hosts[host] = Host(self._limits, self._clock)
        return LimitedSource(source, found, reader)


class Host:
    """What the streams from one host share. Never waits with a lock held. Thread-safe."""

    def __init__(self, limits: SourceLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._changed = threading.Condition()
        self._waiting: list[Reader] = []
        self._open: list[Reader] = []
        rate = limits.bytes_per_second
        self._bucket = Bucket(rate, clock) if rate else None
        self._share = Share(limits.prefetch_share)
        self._slice = self._bucket.slice if self._bucket else MIB

    @contextmanager
    def stream(self, reader: Reader) -> Iterator[None]:
        """Hold one of the connections, waiting for it in turn, pods first."""
        with self._changed:
            self._waiting.append(reader)
            try:
                reader.check()
                while not self._may_open(reader):
                    self._changed.wait(_POLL_SECONDS)
                    reader.check()
                self._open.append(reader)
            finally:
                self._waiting.remove(reader)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._open.remove(reader)
                self._changed.notify_all()

    def admit(self, reader: Reader, most: int) -> int:
        """Return how many bytes, 1..most, may be read now, having waited for them.

        A stopped fetch does not wait: it is about to end, after the chunk that is under way, which
        would be lost otherwise.
        """
        size = min(most, self._slice)
        if reader.urgent():
            self._share.earn(size)
            with self._changed:
                self._changed.notify_all()
        else:
            self._give_way(reader, size)
        if self._bucket:
            wait = self._bucket.reserve(size)
            if wait:
                reader.stop.wait(wait)
        return size

    def _give_way(self, reader: Reader, size: int) -> None:
        deadline = time.monotonic() + self._limits.patience
        with self._changed:
            while not reader.urgent() and any(one.urgent() for one in self._open):
                left = deadline - time.monotonic()
                if self._share.take(size) or left <= 0 or reader.stop.is_set():
                    return
                self._changed.wait(min(left, _POLL_SECONDS))

    def _may_open(self, reader: Reader) -> bool:
        urgent, most = reader.urgent(), self._limits.connections
        if len(self._open) >= most:
            return False
        if urgent:
            first = next((one for one in self._waiting if one.urgent()), reader)
            return first is reader
        # A pod must not wait for prefetches that are being slowed down for its sake.
        others = sum(not one.urgent() for one in self._open)
        first = next((one for one in self._waiting if not one.urgent()), reader)
        return others < most - most // 2 and first is reader


class LimitedSource:
    """A source (a `spec.source.BlobSource`) within the limits of its host.

    `open` waits for a connection, `read` for bandwidth. When the fetch is stopped, `open` raises
    the error that it was stopped with, and `read` does not wait any more.
    """

    def __init__(self, source: BlobSource, host: Host, reader: Reader) -> None:
        self._source = source
        self._host = host
        self._reader = reader

    @property
    def name(self) -> str:
        """Who this is (see BlobSource)."""
        return self._source.name

    @contextmanager
    def open(self, blob: Descriptor, offset: int, length: int) -> Iterator[ByteStream]:
        """Stream a range (see BlobSource)."""
        with (
            self._host.stream(self._reader),
            self._source.open(blob, offset, length) as stream,
        ):
            yield _LimitedStream(stream, length, self._host, self._reader)


class _LimitedStream:
    def __init__(self, stream: ByteStream, length: int, host: Host, reader: Reader) -> None:
        self._stream = stream
        self._left = length
        self._admitted = 0
        self._host = host
        self._reader = reader

    def read(self, size: int, /) -> bytes | memoryview:
        """Return the next bytes (see ByteStream)."""
        if self._left and not self._admitted:
            self._admitted = self._host.admit(self._reader, min(size, self._left))
        # At the end the stream may still say that more came than was asked for.
        data = self._stream.read(min(size, self._admitted) or size)
        self._admitted -= len(data)
        self._left -= len(data)
        return data
