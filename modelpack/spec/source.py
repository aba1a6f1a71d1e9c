"""The two directions of bytes: a source serves ranges of blobs, content is to be published."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from modelpack.spec.manifest import Descriptor


class ByteStream(Protocol):
    """Bytes that arrive in order."""

    def read(self, size: int, /) -> bytes | memoryview:
        """Return 1..size bytes, or nothing at the end. Never waits without a limit.

        A memoryview is valid until the next call.
        """


class BlobSource(Protocol):
    """Something that can serve ranges of blobs. Called from many threads at once."""

    @property
    def name(self) -> str:
        """Who this is, for errors and statistics; never holds a secret."""

    def open(
        self, blob: Descriptor, offset: int, length: int
    ) -> AbstractContextManager[ByteStream]:
        """Stream exactly `length` bytes of `blob` from `offset`; length >= 1.

        Raises NotFound, Unauthorized, Denied, Unavailable, ProtocolViolation; RangeIgnored where
        the whole blob would come although less was asked for. A stream that ends early or late
        raises ProtocolViolation from `read`. A request that covers the whole blob is made without
        a range, so that sources without range support can answer it.
        """


class Content(Protocol):
    """A blob that can be read again from any offset: what resumable uploads need."""

    @property
    def blob(self) -> Descriptor:
        """Digest, size and media type of the bytes."""

    def read_from(self, offset: int) -> Iterator[bytes | memoryview]:
        """Yield the bytes from `offset` to the end, at most 1 MiB at a time.

        A memoryview is valid until the next one is asked for. Raises BadSource if the bytes are
        known to have changed since they were digested.
        """


class Bytes:
    """Content that is in memory: manifests' small companions."""

    def __init__(self, blob: Descriptor, data: bytes) -> None:
        self.blob = blob
        self._data = data

    def read_from(self, offset: int) -> Iterator[bytes | memoryview]:
        """Yield the bytes from `offset`."""
        view = memoryview(self._data)[offset:]
        for start in range(0, len(view), 1 << 20):
            yield view[start : start + (1 << 20)]
