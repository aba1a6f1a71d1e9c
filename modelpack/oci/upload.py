"""Uploading blobs: whole, or in chunks that can be continued (distribution-spec, "Push")."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urljoin, urlsplit

from urllib3.response import BaseHTTPResponse

from modelpack.oci.answers import check, failure
from modelpack.spec import limits, media
from modelpack.spec.errors import (
    IntegrityError,
    ModelpackError,
    ProtocolViolation,
    Rejected,
    Unavailable,
)
from modelpack.spec.manifest import Descriptor
from modelpack.spec.progress import Progress
from modelpack.spec.source import Content

if TYPE_CHECKING:
    from modelpack.oci.remote import RemoteRepository

SMALL: Final = 4 * limits.MIB  # sent in one request, not worth continuing
CHUNK: Final = 64 * limits.MIB
_PUSH: Final = "pull,push"
_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d+)")


class RenewedError(Unavailable):
    """Credentials were renewed while a body was on its way: send it again."""

    def __init__(self) -> None:
        super().__init__("the token expired during an upload", retry_after=0)


class _SessionLostError(Unavailable):
    """The registry does not know the upload session, or another offset in it."""


def mount(repository: "RemoteRepository", blob: Descriptor, source: str) -> bool:
    """Ask the registry to link a blob of another repository; False if it would not."""
    query = urlencode({"mount": blob.digest, "from": source})
    response = repository.send(
        "POST", f"blobs/uploads/?{query}", _PUSH, content=b"", also=(f"repository:{source}:pull",)
    )
    response.close()
    if response.status == 202:
        # It opened an upload instead; nobody will use it.
        _cancel(repository, _location(repository, response))
    return response.status == 201


def put(repository: "RemoteRepository", content: Content, progress: Progress) -> None:
    """Upload a blob; continued where the registry says it stopped, in this run or the next."""
    session = _Session(repository, content, progress)
    policy = repository.settings.retry
    failures = 0
    while True:
        before = session.offset
        try:
            session.run()
        except ModelpackError as error:
            failures = 1 if session.offset > before else failures + 1
            if error.permanent or failures >= policy.tries:
                raise
            policy.sleep(policy.pause(error, failures))
        else:
            return


class _Session:
    """One blob on its way: where the session is, and how far the registry has it."""

    def __init__(
        self, repository: "RemoteRepository", content: Content, progress: Progress
    ) -> None:
        self._repository = repository
        self._content = content
        self._progress = progress
        self._log = repository.settings.uploads
        self._key = f"{repository.name}@{content.blob.digest}"
        self._location = ""
        self._whole = content.blob.size <= SMALL
        self._chunk = CHUNK
        self.offset = 0

    def run(self) -> None:
        """Find or open a session, send what is missing, finish it."""
        self._open()
        if self._whole:
            self._send_whole()
            return
        while self.offset < self._content.blob.size:
            self._patch()
        self._finish(self._repository.send(
            "PUT", self._with_digest(), _PUSH, {"Content-Type": media.OCTETS}, b""
        ))  # fmt: skip

    def _open(self) -> None:
        known = "" if self._whole else self._location or self._log.get(self._key)
        if known and self._continue(known):
            return
        self._rewind(0)
        response = self._repository.send("POST", "blobs/uploads/", _PUSH, content=b"")
        check(response, (202,), self._repository.name)
        least = response.headers.get("OCI-Chunk-Min-Length", "")
        response.release_conn()
        if least.isdigit():
            self._chunk = max(CHUNK, min(int(least), 1 << 40))
        self._moved_to(response)

    def _continue(self, location: str) -> bool:
        """Ask how far the registry got: it may have lost, or gained, what we do not know of."""
        try:
            response = self._repository.send("GET", location, _PUSH)
        except ModelpackError as error:
            if error.permanent:
                return False
            raise
        response.close()
        reported = _RANGE.fullmatch(response.headers.get("Range", ""))
        if response.status not in (202, 204) or reported is None:
            self._forget()
            return False
        # "0-0" is one byte by the specification and nothing to docker-registry: start anew.
        offset = int(reported[1]) + 1
        if offset == 1 or offset > self._content.blob.size:
            _cancel(self._repository, location)
            self._forget()
            return False
        self._rewind(offset)
        self._moved_to(response, fallback=location)
        return True

    def _patch(self) -> None:
        end = min(self.offset + self._chunk, self._content.blob.size)
        headers = {
            "Content-Type": media.OCTETS,
            "Content-Length": str(end - self.offset),
            "Content-Range": f"{self.offset}-{end - 1}",
        }
        start = self.offset
        sent = _Sent(self._content.read_from(start), end - start, self._progress)
        try:
            response = self._repository.send("PATCH", self._location, _PUSH, headers, sent.bytes())
            if response.status in (404, 405, 416) and start == 0:
                # It does not take chunks: everything in one request, which cannot be continued.
                response.close()
                self._whole = True
                self._forget()
                raise _SessionLostError(f"{self._repository.name}: takes no chunked uploads")
            if response.status in (404, 416):
                response.close()
                self._forget()
                raise _SessionLostError(f"{self._repository.name}: the upload session was lost")
            check(response, (202, 201, 204), self._key)
        except ModelpackError:
            self._progress.advance(-sent.total)
            raise
        response.release_conn()
        reported = _RANGE.fullmatch(response.headers.get("Range", ""))
        if reported is not None and int(reported[1]) + 1 != end:
            self._progress.advance(-sent.total)
            _cancel(self._repository, self._location)
            self._forget()
            raise _SessionLostError(
                f"{self._repository.name}: has {reported[1]} bytes and one where {end} were sent"
            )
        self.offset = end
        self._moved_to(response, fallback=self._location)

    def _send_whole(self) -> None:
        size = self._content.blob.size
        headers = {"Content-Type": media.OCTETS, "Content-Length": str(size)}
        sent = _Sent(self._content.read_from(0), size, self._progress)
        try:
            self._finish(
                self._repository.send(
                    "PUT", self._with_digest(), _PUSH, headers, sent.bytes() if size else b""
                )
            )
        except ModelpackError:
            self._progress.advance(-sent.total)
            raise

    def _finish(self, response: BaseHTTPResponse) -> None:
        blob = self._content.blob
        if response.status in (201, 204):
            response.release_conn()
            self._forget()
            return
        error = failure(response, self._key)
        self._forget()
        if isinstance(error, Rejected) and "DIGEST" in str(error).upper():
            raise IntegrityError(
                f"layer {blob.digest}", expected=blob.digest, got="other bytes",
                source=self._repository.name,
                hint="a file changed while it was uploaded, or the session was damaged: run again",
            ) from error  # fmt: skip
        if response.status == 404:
            raise _SessionLostError(str(error)) from error
        raise error

    def _with_digest(self) -> str:
        joint = "&" if urlsplit(self._location).query else "?"
        return f"{self._location}{joint}{urlencode({'digest': self._content.blob.digest})}"

    def _rewind(self, offset: int) -> None:
        """Continue from `offset`: what was counted beyond it will be counted again."""
        if offset < self.offset:
            self._progress.advance(offset - self.offset)
        elif offset > self.offset:
            # An earlier run sent these; they do not travel now.
            self._progress.expect(self.offset - offset)
        self.offset = offset

    def _moved_to(self, response: BaseHTTPResponse, fallback: str = "") -> None:
        self._location = _location(self._repository, response) or fallback
        if not self._location:
            raise ProtocolViolation(f"{self._repository.name}: an upload without a location")
        if not self._whole:
            self._log.put(self._key, self._location)

    def _forget(self) -> None:
        self._location = ""
        self._log.drop(self._key)


class _Sent:
    """A bounded part of content, counted as it goes out."""

    def __init__(
        self, parts: Iterator[bytes | memoryview], length: int, progress: Progress
    ) -> None:
        self._parts = parts
        self._left = length
        self._progress = progress
        self.total = 0

    def bytes(self) -> Iterator[bytes | memoryview]:
        """Yield exactly the length that was announced."""
        while self._left:
            part = next(self._parts, None)
            if part is None:
                raise ProtocolViolation(f"the content ended {self._left} bytes early")
            part = part[: self._left]
            yield part
            self._left -= len(part)
            self.total += len(part)
            self._progress.advance(len(part))


def _location(repository: "RemoteRepository", response: BaseHTTPResponse) -> str:
    location = response.headers.get("Location", "")
    return urljoin(f"{repository.base}/v2/", location) if location else ""


def _cancel(repository: "RemoteRepository", location: str) -> None:
    """Tell the registry that a session will not be used; it would expire anyway."""
    try:
        if location:
            repository.send("DELETE", location, _PUSH).close()
    except ModelpackError:
        pass
