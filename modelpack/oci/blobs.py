"""Blobs of a repository, to be read (distribution-spec, "Pulling blobs")."""

from collections.abc import Mapping

from urllib3.response import BaseHTTPResponse

from modelpack.oci.answers import check, head_only
from modelpack.oci.exchange import Exchange
from modelpack.oci.headers import content_range, number, printable
from modelpack.oci.pace import Watch
from modelpack.oci.stream import BodyStream
from modelpack.spec.errors import NotFound, ProtocolViolation, RangeIgnored, RegistryError
from modelpack.spec.manifest import Descriptor


class BlobReader:
    """Serves ranges of blobs, and remembers where the registry keeps them. Thread-safe."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._watch = Watch(exchange.settings.stall_seconds / 4)
        self._elsewhere: dict[str, str] = {}

    def size(self, digest: str) -> int | None:
        """Return the size of a blob, or None if it is not there."""
        response, _ = self._exchange.follow("HEAD", f"blobs/{digest}", {})
        what = f"{self._exchange.name}@{digest}"
        if response.status == 404:
            head_only(response)
            return None
        check(response, (200,), what)
        length = number(response.headers.get("Content-Length"))
        head_only(response)
        if length is None:
            raise ProtocolViolation(f"{what}: the registry does not say how large it is")
        return length

    def open(self, blob: Descriptor, offset: int, length: int) -> BodyStream:
        """Ask for a range once, without retries: who reads knows where to continue."""
        whole = offset == 0 and length == blob.size
        headers = {} if whole else {"Range": f"bytes={offset}-{offset + length - 1}"}
        what = f"{self._exchange.name}@{blob.digest}"
        response = self._ask(blob.digest, headers)
        try:
            _check_status(response, what, whole=whole)
            _check_length(response, what, offset, length)
        except RegistryError:
            response.close()
            raise
        settings = self._exchange.settings
        return BodyStream(
            response,
            length,
            what,
            window=settings.stall_seconds,
            slowest=settings.trickle_bytes,
            watch=self._watch,
        )

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()

    def _ask(self, digest: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """Ask for a blob, first where the registry sent us the last time."""
        known = self._elsewhere.get(digest)
        if known:
            try:
                response = self._exchange.transport.request("GET", known, headers)
            except RegistryError:
                pass  # unreachable: the registry may name another place
            else:
                if response.status in (200, 206):
                    return response
                response.close()  # signed addresses expire
        response, url = self._exchange.follow("GET", f"blobs/{digest}", headers)
        if response.status in (200, 206) and not self._exchange.is_own(url):
            self._elsewhere[digest] = url
        else:
            self._elsewhere.pop(digest, None)
        return response


def _check_status(response: BaseHTTPResponse, what: str, *, whole: bool) -> None:
    if response.status == 200 and not whole:
        raise RangeIgnored(f"{what}: the whole blob came instead of a range")
    if response.status == 416:
        raise ProtocolViolation(f"{what}: the registry's copy does not have the range asked for")
    if response.status == 404:
        raise NotFound(
            f"{what}: the registry does not have this blob",
            hint="the artifact is incomplete; push it again",
        )
    check(response, (200, 206), what)


def _check_length(response: BaseHTTPResponse, what: str, offset: int, length: int) -> None:
    wanted = (offset, offset + length - 1)
    header = response.headers.get("Content-Range")
    if response.status == 206 and content_range(header) != wanted:
        shown = printable(header or "nothing", 80)
        raise ProtocolViolation(
            f"{what}: asked for bytes {wanted[0]} to {wanted[1]}, got {shown!r}"
        )
    declared = number(response.headers.get("Content-Length"))
    if declared not in (None, length):
        raise ProtocolViolation(f"{what}: asked for {length} bytes, {declared} are announced")
