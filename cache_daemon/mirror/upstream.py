"""The registry behind the mirror, asked with the caller's own Authorization and nothing of ours."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urljoin

from urllib3.response import BaseHTTPResponse

from cache_daemon.mirror.asked import Asked
from modelpack.oci.answers import body, head_only
from modelpack.oci.challenge import parse
from modelpack.oci.exchange import Exchange
from modelpack.oci.settings import ConnectSettings
from modelpack.spec import limits, media
from modelpack.spec.errors import Unavailable

_RELAYED: Final = (
    "Content-Type", "Content-Length", "Content-Range", "Docker-Content-Digest", "ETag", "Location",
    "Accept-Ranges", "Last-Modified",
)  # fmt: skip
_STALL_SECONDS: Final = 15.0
_REDIRECTS: Final = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a registry said: status, the headers that matter, the body of a manifest."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def allowed(self) -> bool:
        """Whether the caller may read what was asked for."""
        return self.status in (200, 206, *_REDIRECTS)


class Upstream:
    """Asks registries. Thread-safe."""

    def __init__(self, connect: ConnectSettings) -> None:
        # containerd 2 waits half a minute for an answer of a mirror, and 1.6 for ever.
        self._connect = replace(connect, connect_seconds=5, stall_seconds=_STALL_SECONDS)
        self._lock = threading.Lock()
        self._exchanges: dict[str, Exchange] = {}

    def manifest(self, asked: Asked, method: str, authorization: str) -> Answer:
        """Ask for a manifest; raises Unavailable and its kin."""
        response = self._send(asked, method, authorization, {"Accept": ", ".join(media.MANIFESTS)})
        headers = _headers(response)
        if method == "HEAD" or response.status != 200:
            head_only(response)
            return Answer(response.status, headers)
        return Answer(200, headers, body(response, limits.MANIFEST_BYTES, asked.name))

    def blob_exists(self, asked: Asked, authorization: str) -> Answer:
        """Ask whether the caller may read a blob."""
        response = self._send(asked, "HEAD", authorization, {})
        head_only(response)
        return Answer(response.status, _headers(response))

    def blob(
        self, asked: Asked, authorization: str, range_: str
    ) -> tuple[Answer, BaseHTTPResponse]:
        """Ask for a blob; the body is for the caller to read and to close."""
        headers = {"Range": range_} if range_ else {}
        response = self._send(asked, "GET", authorization, headers)
        return Answer(response.status, _headers(response)), response

    def close(self) -> None:
        """Drop connections."""
        with self._lock:
            for exchange in self._exchanges.values():
                exchange.close()

    def _send(
        self, asked: Asked, method: str, authorization: str, headers: Mapping[str, str]
    ) -> BaseHTTPResponse:
        exchange = self._exchange(asked.registry)
        url = f"{exchange.base}/v2/{asked.repository}/{asked.kind}/{asked.target}"
        sent = {**headers, **({"Authorization": authorization} if authorization else {})}
        response = exchange.transport.request(method, url, sent)
        if response.status == 429 or response.status >= 500:
            response.close()
            raise Unavailable(f"{asked.name}: the registry answers {response.status}")
        if location := response.headers.get("Location"):
            response.headers["Location"] = urljoin(url, location)  # relative to the registry
        return response

    def _exchange(self, registry: str) -> Exchange:
        with self._lock:
            if registry not in self._exchanges:
                self._exchanges[registry] = Exchange(registry, "", self._connect)
            return self._exchanges[registry]


def _headers(response: BaseHTTPResponse) -> dict[str, str]:
    found = {name: value for name in _RELAYED if (value := response.headers.get(name))}
    challenge = ", ".join(response.headers.getlist("WWW-Authenticate"))
    # Basic would have the runtime send a password to us: it shall go to the registry itself.
    if any(one.scheme == "bearer" for one in parse(challenge)):
        found["WWW-Authenticate"] = challenge
    return found
