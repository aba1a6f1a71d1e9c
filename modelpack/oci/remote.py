"""A repository of a registry over HTTP (OCI distribution-spec v1.1)."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec
from urllib3.response import BaseHTTPResponse

from modelpack.oci import referrers as referrers_of
from modelpack.oci import upload
from modelpack.oci.answers import body, check, failure, json_body, redacted
from modelpack.oci.auth import Authenticator
from modelpack.oci.settings import ConnectSettings
from modelpack.oci.stream import BodyStream
from modelpack.oci.transport import Body, Transport
from modelpack.spec import limits, media
from modelpack.spec.digest import Digest
from modelpack.spec.errors import (
    Denied,
    IntegrityError,
    LimitExceeded,
    ModelpackError,
    NotFound,
    ProtocolViolation,
    RangeIgnored,
    Rejected,
)
from modelpack.spec.manifest import Descriptor
from modelpack.spec.progress import Progress
from modelpack.spec.reference import DEFAULT_REGISTRY
from modelpack.spec.source import ByteStream, Content

_HUB: Final = "registry-1.docker.io"
_REDIRECTS: Final = 5
_PAGES: Final = 1000
_PAGE_SIZE: Final = 1000
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_LOOPBACK: Final = re.compile(r"(localhost|127(?:\.\d+){3}|\[::1\])(:\d+)?")
_REDIRECT_STATUSES: Final = (301, 302, 303, 307, 308)
Result = TypeVar("Result")


class _TagPage(msgspec.Struct):
    tags: list[str] | None = None


class RemoteRepository:
    """One repository (a `spec.registry.Repository`)."""

    def __init__(self, registry: str, repository: str, settings: ConnectSettings) -> None:
        self.name = f"{registry}/{repository}"
        self.registry = registry
        self.repository = repository
        self.settings = settings
        plain = settings.plain_http or _LOOPBACK.fullmatch(registry) is not None
        host = _HUB if registry == DEFAULT_REGISTRY else registry
        # A loopback registry may speak TLS all the same: asking for a CA says so.
        secure = not plain or settings.ca_file is not None or settings.insecure
        self.base = f"{'https' if secure and not settings.plain_http else 'http'}://{host}"
        self._transport = Transport(settings)
        self._auth = Authenticator(registry, repository, settings.credentials, self._transport)
        self._redirects: dict[str, str] = {}

    def close(self) -> None:
        """Drop connections."""
        self._transport.close()

    def ping(self) -> None:
        """Ask whether there is a registry that accepts our credentials."""
        self.retry(self._ping)

    def manifest(self, target: str) -> tuple[Descriptor, bytes]:
        """Fetch a manifest (see Repository)."""
        return self.retry(lambda: self._manifest(target))

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        """Store a manifest and see that it is stored (see Repository)."""
        digest = Digest.of(data)
        target = tag or str(digest)

        def put() -> Mapping[str, str]:
            response = self.send(
                "PUT", f"manifests/{target}", "pull,push", {"Content-Type": media_type}, data
            )
            check(response, (201,), f"{self.name}:{target}")
            body(response, limits.JSON_BODY_BYTES, self.name)
            return response.headers

        headers = self.retry(put)
        stored = headers.get("Docker-Content-Digest") or self.manifest(target)[0].digest
        if stored != str(digest):
            raise IntegrityError(
                f"manifest {target}", expected=str(digest), got=stored, source=self.name,
                hint="the registry stored something else than it was sent",
            )  # fmt: skip
        descriptor = Descriptor(media_type, str(digest), len(data))
        if "OCI-Subject" not in headers:
            referrers_of.add_to_fallback(self, data, descriptor)
        return descriptor

    def delete_manifest(self, target: str) -> None:
        """Remove a manifest (see Repository).

        Registries that cannot delete tags (distribution) delete what the tag names.
        """
        try:
            self.retry(lambda: self._delete(target))
        except (Rejected, Denied):
            if ":" in target:
                raise
            digest = self.manifest(target)[0].digest
            self.retry(lambda: self._delete(digest))

    def tags(self) -> list[str]:
        """List all tags (see Repository)."""
        found: list[str] = []
        url = f"{self.base}/v2/{self.repository}/tags/list?n={_PAGE_SIZE}"
        for _ in range(_PAGES):
            page, following = self.retry(lambda url=url: self._page(url))  # type: ignore[misc]
            found += page.tags or ()
            if not following:
                return sorted(set(found))
            url = following
        raise LimitExceeded(f"{self.name}: more than {_PAGES} pages of tags")

    def stat_blob(self, digest: str) -> int | None:
        """Return the size of a blob (see Repository)."""
        return self.retry(lambda: self._stat(digest))

    def put_blob(self, content: Content, progress: Progress) -> None:
        """Upload a blob (see Repository)."""
        upload.put(self, content, progress)

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:
        """Mount a blob from a neighbour (see Repository)."""
        try:
            return self.retry(lambda: upload.mount(self, blob, repository))
        except ModelpackError:
            return False  # a neighbour that may not be read is no reason to fail

    def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """List referrers (see Repository)."""
        return referrers_of.find(self, digest, artifact_type)

    def open(
        self, blob: Descriptor, offset: int, length: int
    ) -> AbstractContextManager[ByteStream]:
        """Stream a range (see BlobSource)."""
        return self.retry(lambda: self._open(blob, offset, length))

    def retry(self, do: Callable[[], Result]) -> Result:
        """Run a request under the retry policy."""
        return self.settings.retry.run(do)

    def send(  # noqa: PLR0913  # one request has that many parts
        self,
        method: str,
        path: str,
        actions: str,
        headers: Mapping[str, str] | None = None,
        content: Body = None,
        *,
        also: tuple[str, ...] = (),
    ) -> BaseHTTPResponse:
        """Send a request below the repository, or to a full URL, authenticated.

        A refusal (401) is answered once with fresh credentials; `content` that is not bytes is
        sent only once, so the caller repeats it. `also` are more token scopes.
        """
        url = path if "://" in path else f"{self.base}/v2/{self.repository}/{path}"
        own = self._is_own(url)
        scopes = (f"repository:{self.repository}:{actions}", *also)
        header = self._auth.header(scopes) if own else ""
        response = self._transport.request(method, url, _with(headers, header), content)
        if response.status != 401 or not own:
            return response
        challenge = ", ".join(response.headers.getlist("WWW-Authenticate"))
        response.close()
        header = self._auth.answer(challenge, scopes, header, secure=self.base.startswith("https"))
        if content is not None and not isinstance(content, bytes):
            raise upload.RenewedError
        return self._transport.request(method, url, _with(headers, header), content)

    def follow(self, method: str, path: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """Send a GET or HEAD and follow redirects; credentials never leave the registry."""
        response = self.send(method, path, "pull", headers)
        url = path if "://" in path else f"{self.base}/v2/{self.repository}/{path}"
        for _ in range(_REDIRECTS):
            if response.status not in _REDIRECT_STATUSES:
                return response
            location = response.headers.get("Location", "")
            response.close()
            url = self._redirected(url, location)
            response = self.send(method, url, "pull", headers)
        response.close()
        raise ProtocolViolation(f"{self.name}: more than {_REDIRECTS} redirects")

    def _redirected(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        if urlsplit(target).scheme not in ("http", "https") or not urlsplit(target).netloc:
            raise ProtocolViolation(f"{self.name}: a redirect to nowhere")
        if url.startswith("https:") and not target.startswith("https:"):
            raise ProtocolViolation(f"{self.name}: a redirect from TLS to {redacted(target)}")
        return target

    def _is_own(self, url: str) -> bool:
        ours, theirs = urlsplit(self.base), urlsplit(url)
        return (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)

    def _ping(self) -> None:
        response = self.send("GET", f"{self.base}/v2/", "pull")
        check(response, (200,), self.registry)
        body(response, limits.JSON_BODY_BYTES, self.registry)

    def _manifest(self, target: str) -> tuple[Descriptor, bytes]:
        what = f"{self.name}@{target}" if ":" in target else f"{self.name}:{target}"
        response = self.follow("GET", f"manifests/{target}", {"Accept": ", ".join(media.MANIFESTS)})
        check(response, (200,), what)
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        claimed = response.headers.get("Docker-Content-Digest", "")
        data = body(response, limits.MANIFEST_BYTES, what)
        by_digest = ":" in target
        expected = target if by_digest else claimed
        algorithm = Digest.parse(expected).algorithm if by_digest else "sha256"
        digest = str(Digest.of(data, algorithm))
        if expected.startswith(f"{algorithm}:") and digest != expected:
            raise IntegrityError(
                f"manifest {what}", expected=expected, got=digest, source=self.registry,
                hint="the registry, or something before it, changes manifests",
            )  # fmt: skip
        return Descriptor(media_type, digest, len(data)), data

    def _delete(self, target: str) -> None:
        response = self.send("DELETE", f"manifests/{target}", "delete,pull,push")
        if response.status == 405:
            response.close()
            raise Denied(
                f"{self.name}: the registry does not delete manifests",
                hint="docker-registry wants storage.delete.enabled: true",
            )
        check(response, (202, 200, 204), f"{self.name}:{target}")
        response.close()

    def _page(self, url: str) -> tuple[_TagPage, str]:
        response = self.send("GET", url, "pull")
        check(response, (200,), self.name)
        link = response.headers.get("Link", "")
        page = json_body(response, _TagPage, limits.JSON_BODY_BYTES, self.name)
        found = re.match(r'\s*<([^>]*)>\s*;\s*rel="?next"?', link)
        following = urljoin(url, found[1]) if found else ""
        if following and not self._is_own(following):
            raise ProtocolViolation(f"{self.name}: the next page of tags is on another host")
        return page, following

    def _stat(self, digest: str) -> int | None:
        response = self.follow("HEAD", f"blobs/{digest}", {})
        if response.status == 404:
            response.close()
            return None
        if response.status == 401:
            raise failure(response, self.name)
        check(response, (200,), f"{self.name}@{digest}")
        length = response.headers.get("Content-Length", "")
        response.release_conn()
        return int(length) if length.isdigit() else 0

    def _open(self, blob: Descriptor, offset: int, length: int) -> BodyStream:
        whole = offset == 0 and length == blob.size
        headers = {} if whole else {"Range": f"bytes={offset}-{offset + length - 1}"}
        what = f"{self.name}@{blob.digest}"
        response = self._blob(blob.digest, headers)
        if response.status == 200 and not whole:
            response.close()
            raise RangeIgnored(f"{what}: the whole blob came instead of a range")
        if response.status == 416:
            response.close()
            raise ProtocolViolation(f"{what}: has no bytes {offset} to {offset + length - 1}")
        if response.status == 404:
            response.close()
            raise NotFound(f"{what}: the registry does not have this blob",
                           hint="the artifact is incomplete; push it again")  # fmt: skip
        check(response, (200, 206), what)
        problem = _wrong_length(response, offset, length)
        if problem:
            response.close()
            raise ProtocolViolation(f"{what}: {problem}")
        return BodyStream(
            response, length, what,
            window=self.settings.stall_seconds, slowest=self.settings.trickle_bytes,
        )  # fmt: skip

    def _blob(self, digest: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """Ask for a blob, first where the registry sent us the last time."""
        known = self._redirects.get(digest)
        if known:
            response = self._transport.request("GET", known, headers)
            if response.status in (200, 206):
                return response
            response.close()  # signed addresses expire
            self._redirects.pop(digest, None)
        response = self.send("GET", f"blobs/{digest}", "pull", headers)
        url = f"{self.base}/v2/{self.repository}/blobs/{digest}"
        for _ in range(_REDIRECTS):
            if response.status not in _REDIRECT_STATUSES:
                if not self._is_own(url):
                    self._redirects[digest] = url
                return response
            location = response.headers.get("Location", "")
            response.close()
            url = self._redirected(url, location)
            response = self.send("GET", url, "pull", headers)
        response.close()
        raise ProtocolViolation(f"{self.name}: more than {_REDIRECTS} redirects")


def _wrong_length(response: BaseHTTPResponse, offset: int, length: int) -> str:
    """Say what is wrong with the range or the length of an answer, if anything."""
    if response.status == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None or (int(found[1]), int(found[2])) != (offset, offset + length - 1):
            shown = response.headers.get("Content-Range", "nothing")[:80]
            return f"asked for bytes {offset} to {offset + length - 1}, got {shown!r}"
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) != length:
        return f"asked for {length} bytes, {declared} are announced"
    return ""


def _with(headers: Mapping[str, str] | None, authorization: str) -> dict[str, str]:
    return {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
