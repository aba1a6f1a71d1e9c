"""The body of a ranged answer, checked while it is read."""

from contextlib import suppress
from types import TracebackType
from typing import Self

from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from modelpack.oci.answers import finish
from modelpack.oci.headers import number
from modelpack.oci.pace import Pace, Watch
from modelpack.oci.transport import unavailable
from modelpack.spec.errors import ProtocolViolation, Unavailable


class BodyStream:
    """Exactly `length` bytes of an answer (a `spec.source.ByteStream`).

    Raises Unavailable when the connection breaks, stalls or trickles, ProtocolViolation when the
    answer properly ends early or goes on. `slowest` bytes per second are expected over every
    `window` seconds.
    """

    def __init__(  # noqa: PLR0913  # an answer, what it should be, and how fast
        self,
        response: BaseHTTPResponse,
        length: int,
        what: str,
        *,
        window: float,
        slowest: int,
        watch: Watch,
    ) -> None:
        self._response = response
        self._left = length
        self._what = what
        self._pace = Pace(window, slowest, self._stop)
        self._watch = watch
        watch.add(self._pace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.remove(self._pace)
        finish(self._response, whole=not self._left and kind is None)

    def read(self, size: int, /) -> bytes:
        """Return the next bytes (see ByteStream)."""
        if not self._left:
            return b""
        data = self._receive(min(size, self._left, self._pace.slice))
        if not data:
            raise ProtocolViolation(f"{self._what}: ended {self._left} bytes early")
        self._left -= len(data)
        declared = number(self._response.headers.get("Content-Length"))
        if not self._left and declared is None and self._receive(1):
            raise ProtocolViolation(f"{self._what}: more bytes came than were asked for")
        return data

    def _receive(self, most: int) -> bytes:
        data = b""
        self._pace.start()
        try:
            data = self._response.read(most, decode_content=False)
        except (HTTPError, OSError) as error:
            if not self._pace.too_slow:
                raise unavailable(self._what, error) from error
        except ValueError:  # a TLS socket that was shut down under its reader
            if not self._pace.too_slow:
                raise
        finally:
            self._pace.end(len(data))
        if self._pace.too_slow:
            raise Unavailable(
                f"{self._what}: comes too slowly", hint="check the network, or try later"
            )
        return data

    def _stop(self) -> None:
        with suppress(OSError, ValueError, RuntimeError):  # it has just ended by itself
            self._response.shutdown()
