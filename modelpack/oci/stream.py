"""The body of a ranged answer, checked while it is read."""

import time
from types import TracebackType
from typing import Self

from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from modelpack.oci.answers import finish
from modelpack.oci.transport import unavailable
from modelpack.spec.errors import Unavailable


class BodyStream:
    """Exactly `length` bytes of an answer (a `spec.source.ByteStream`).

    Ends in Unavailable when they do not all come, and when they come so slowly that somebody seems
    to hold the connection for its own sake.
    """

    def __init__(
        self,
        response: BaseHTTPResponse,
        length: int,
        what: str,
        *,
        window: float,
        slowest: int,
    ) -> None:
        """`slowest` bytes per second are expected over every `window` seconds."""
        self._response = response
        self._left = length
        self._what = what
        self._window = window
        self._slowest = slowest
        self._since = time.monotonic()
        self._received = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        finish(self._response, whole=not self._left)

    def read(self, size: int, /) -> bytes:
        """Return the next bytes (see ByteStream)."""
        if not self._left:
            return b""
        try:
            data: bytes = self._response.read(min(size, self._left), decode_content=False)
        except (HTTPError, OSError) as error:
            raise unavailable(self._what, error) from error
        if not data:
            raise Unavailable(f"{self._what}: ended {self._left} bytes early")
        self._left -= len(data)
        self._watch(len(data))
        return data

    def _watch(self, received: int) -> None:
        self._received += received
        elapsed = time.monotonic() - self._since
        if elapsed >= self._window:
            if self._received < self._slowest * elapsed:
                raise Unavailable(
                    f"{self._what}: {self._received} bytes in {elapsed:.0f} s: too slow"
                )
            self._since, self._received = time.monotonic(), 0
