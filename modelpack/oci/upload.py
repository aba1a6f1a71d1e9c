"""Uploading blobs: whole, or in chunks that can be continued (distribution-spec, "Push").

What can be continued is up to the registry. docker-registry (2.8 and 3) signs the offset into the
session's address: after a request that broke off half-way the address no longer fits and the whole
session is dropped, so only complete requests can be built upon; those end at multiples of CHUNK. It
also appends whatever is sent, at whatever offset. Hence its count is asked for before every
continuation and compared after every request, and the digest decides at the end.
"""

from contextlib import suppress
from typing import Final
from urllib.parse import urlencode, urlsplit

from urllib3.response import BaseHTTPResponse

from modelpack.oci.answers import check, failure, failure_and_code, head_only
from modelpack.oci.blobs import BlobReader
from modelpack.oci.exchange import PUSH, Exchange, RenewedError
from modelpack.oci.headers import number, uploaded
from modelpack.oci.sent import Told, body
from modelpack.spec import limits, media
from modelpack.spec.errors import (
    BadSource,
    IntegrityError,
    ModelpackError,
    ProtocolViolation,
    Unavailable,
)
from modelpack.spec.manifest import Descriptor
from modelpack.spec.progress import Progress
from modelpack.spec.source import Content

SMALL: Final = 4 * limits.MIB  # sent in one request, not worth continuing
CHUNK: Final = 64 * limits.MIB  # proxies commonly refuse bodies of 100 MB
_LARGEST_CHUNK: Final = limits.GIB
_TRY_LATER: Final = (408, 425, 429, 500, 502, 503, 504)
_NO_CHUNKS: Final = (400, 404, 405, 411, 415, 416, 501)
_OTHER_OFFSET: Final = (400, 404, 416)


class _SessionLostError(Unavailable):
    """The registry does not know the upload session, or another offset in it."""


def mount(exchange: Exchange, blob: Descriptor, source: str) -> bool:
    """Ask the registry to link a blob of another repository; False if it opens an upload instead.

    Raises what its refusal means.
    """
    query = urlencode({"mount": blob.digest, "from": source})
    response = exchange.send(
        "POST", f"blobs/uploads/?{query}", PUSH, content=b"", also=(f"repository:{source}:pull",)
    )
    check(response, (201, 202), exchange.name)
    head_only(response)
    if response.status == 202:
        location = response.headers.get("Location", "")
        _cancel(exchange, location and exchange.resolve(location, exchange.url("blobs/uploads/")))
    return response.status == 201


def put(exchange: Exchange, blobs: BlobReader, content: Content, progress: Progress) -> None:
    """Upload a blob; continued where the registry says it stopped, in this run or the next."""
    blob = content.blob
    session = _Session(exchange, content, progress)
    patience = _Patience(exchange)
    try:
        while True:
            try:
                session.run()
            except ModelpackError as error:
                patience.wait(error, session)
            else:
                return
            # Perhaps only the answer was lost.
            if session.all_sent and exchange.retry(lambda: blobs.size(blob.digest)) == blob.size:
                return
    finally:
        session.release()


class _Patience:
    """Whether to try again: as long as it helps, and a few times more."""

    def __init__(self, exchange: Exchange) -> None:
        self._policy = exchange.settings.retry
        self._failures = 0
        self._furthest = 0
        self._renewed = False

    def wait(self, error: ModelpackError, session: "_Session") -> None:
        """Wait before the next try, or raise the error."""
        if session.offset > self._furthest:
            self._furthest, self._failures, self._renewed = session.offset, 0, False
        self._failures += 1
        if error.permanent or self._failures >= self._policy.tries:
            raise error
        if isinstance(error, IntegrityError) and not session.continued:
            raise error  # all bytes were sent in one go: these are the bytes
        if isinstance(error, RenewedError):
            if self._renewed:
                raise error.refusal from error
            self._renewed = True
        self._policy.sleep(self._policy.pause(error, self._failures))


class _Session:
    """One blob on its way: where the session is, and how far the registry has it."""

    def __init__(self, exchange: Exchange, content: Content, progress: Progress) -> None:
        self._exchange = exchange
        self._content = content
        self._size = content.blob.size
        self._told = Told(progress)
        self._log = exchange.settings.uploads
        self._key = f"{exchange.name}@{content.blob.digest}"
        self._location = ""
        self._whole = content.blob.size <= SMALL
        self._chunk = CHUNK
        self._lost = 0
        self.offset = 0
        self.continued = False
        self.all_sent = False

    def run(self) -> None:
        """Find or open a session, send what is missing, finish it."""
        self.all_sent = False
        self._open()
        try:
            if self._whole:
                self._finish(0)
                return
            while self.offset < self._size:
                self._patch()
            self._finish(self._size)
        except _SessionLostError:
            self._forget()
            self._lost += 1
            self._whole = self._whole or self._lost > 1
            raise
        except (IntegrityError, BadSource):
            self._abandon()
            raise

    def release(self) -> None:
        """Leave the session to whoever comes next."""
        if self._location and not self._whole:
            self._log.release(self._key)

    def _open(self) -> None:
        known = "" if self._whole else self._location or self._log.claim(self._key)
        if known and self._continue(known):
            return
        self._rewind(0)
        response = self._exchange.send("POST", "blobs/uploads/", PUSH, content=b"")
        check(response, (202,), self._exchange.name)
        least = number(response.headers.get("OCI-Chunk-Min-Length"))
        head_only(response)
        self._chunk = max(CHUNK, min(least or 0, _LARGEST_CHUNK))
        self._moved_to(response, self._exchange.url("blobs/uploads/"))
        if not self._location:
            raise ProtocolViolation(f"{self._exchange.name}: an upload without a location")

    def _continue(self, location: str) -> bool:
        """Ask how far the registry got: it may have lost, or gained, what we do not know of."""
        try:
            response = self._exchange.send("GET", location, PUSH)
        except ModelpackError as error:
            if error.permanent:
                return False
            raise
        offset = uploaded(response.headers.get("Range"))
        if response.status in _TRY_LATER:
            raise failure(response, self._key)
        response.close()
        if response.status not in (202, 204) or offset is None:
            self._forget()
            return False
        if offset > self._size:
            self._abandon()
            return False
        self._rewind(offset)
        self._location = location
        self._moved_to(response, location)
        self.continued = offset > 0
        return True

    def _patch(self) -> None:
        start, end = self.offset, min(self.offset + self._chunk, self._size)
        headers = {
            "Content-Type": media.OCTETS,
            "Content-Length": str(end - start),
            "Content-Range": f"{start}-{end - 1}",
        }
        data = body(self._content, start, end, self._told)
        response = self._exchange.send("PATCH", self._location, PUSH, headers, data)
        if response.status in _NO_CHUNKS and not start:
            self._whole = True
            raise _SessionLostError(str(failure(response, self._key)))
        if response.status in _OTHER_OFFSET:
            raise _SessionLostError(str(failure(response, self._key)))
        check(response, (202, 201, 204), self._key)
        head_only(response)
        reported = uploaded(response.headers.get("Range"))
        if reported not in (None, end):
            self._abandon()
            raise _SessionLostError(f"{self._key}: has {reported} bytes where {end} were sent")
        self.offset = end
        self._moved_to(response, self._location)

    def _finish(self, start: int) -> None:
        """Send what comes after `start` with the request that names the digest."""
        headers = {"Content-Type": media.OCTETS, "Content-Length": str(self._size - start)}
        data = body(self._content, start, self._size, self._told) if start < self._size else b""
        joint = "&" if urlsplit(self._location).query else "?"
        url = f"{self._location}{joint}{urlencode({'digest': self._content.blob.digest})}"
        self.all_sent = True
        response = self._exchange.send("PUT", url, PUSH, headers, data)
        if response.status in (201, 204):
            head_only(response)
            self._forget()
            return
        error, code = failure_and_code(response, self._key)
        if isinstance(error, Unavailable):
            raise error
        self.all_sent = False
        if code == "DIGEST_INVALID":
            raise IntegrityError(
                f"layer {self._content.blob.digest}", expected=self._content.blob.digest,
                got="other bytes", source=self._exchange.name,
                hint="a file changed while it was uploaded, or the session was damaged: run again",
            ) from error  # fmt: skip
        if response.status in _OTHER_OFFSET and not self._whole:
            raise _SessionLostError(str(error)) from error
        raise error

    def _rewind(self, offset: int) -> None:
        self._told.rewind(offset)
        self.offset = offset
        self.continued = False

    def _moved_to(self, response: BaseHTTPResponse, url: str) -> None:
        location = response.headers.get("Location", "")
        if location:
            self._location = self._exchange.resolve(location, url)
        if self._location and not self._whole:
            self._log.put(self._key, self._location)

    def _abandon(self) -> None:
        """Have the registry drop what it has: it is not the blob."""
        _cancel(self._exchange, self._location)
        self._forget()

    def _forget(self) -> None:
        self._location = ""
        self._log.drop(self._key)


def _cancel(exchange: Exchange, location: str) -> None:
    """Tell the registry that a session will not be used; it would expire anyway."""
    if location:
        with suppress(ModelpackError):
            head_only(exchange.send("DELETE", location, PUSH))
