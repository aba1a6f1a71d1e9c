"""Authenticated requests to one repository of a registry; credentials never leave that registry."""

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from urllib3.exceptions import LocationParseError
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

from modelpack.oci.auth import Authenticator
from modelpack.oci.headers import redacted
from modelpack.oci.settings import ConnectSettings
from modelpack.oci.transport import Body, Transport
from modelpack.spec.errors import ProtocolViolation, RegistryError, Unavailable
from modelpack.spec.reference import DEFAULT_REGISTRY

Result = TypeVar("Result")
PULL: Final = "pull"
PUSH: Final = "pull,push"
DELETE: Final = "delete,pull,push"
_HUB: Final = "registry-1.docker.io"
_REDIRECTS: Final = 5
_REDIRECT_STATUSES: Final = (301, 302, 303, 307, 308)
_LOOPBACK: Final = re.compile(r"(localhost|127(?:\.\d+){3}|\[::1\])(:\d+)?")
_PORTS: Final = {"http": 80, "https": 443}


class RenewedError(Unavailable):
    """Credentials were renewed while a body was on its way: send it again."""

    def __init__(self, refusal: RegistryError) -> None:
        super().__init__("the token expired during an upload", retry_after=0)
        self.refusal = refusal  # what to say if the new ones are refused too


class Exchange:
    """Sends requests to one repository. Thread-safe."""

    def __init__(self, registry: str, repository: str, settings: ConnectSettings) -> None:
        self.name = f"{registry}/{repository}"
        self.repository = repository
        self.settings = settings
        plain = settings.plain_http or _LOOPBACK.fullmatch(registry) is not None
        host = _HUB if registry == DEFAULT_REGISTRY else registry
        # A loopback registry may speak TLS all the same: asking for a CA says so.
        secure = not plain or settings.ca_file is not None or settings.insecure
        self.base = f"{'https' if secure and not settings.plain_http else 'http'}://{host}"
        self.transport = Transport(settings, host)
        self._origin = _origin(self.base)
        self._auth = Authenticator(
            registry,
            repository,
            settings.credentials,
            self.transport,
            secure=self.base.startswith("https:"),
        )

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

        A refusal (401) is answered once with fresh credentials, a second one raises Unauthorized or
        Denied. Content that is not bytes cannot be sent again here: RenewedError asks the caller
        to. `also` are more token scopes.
        """
        url = self.url(path)
        if not self.is_own(url):
            return self.transport.request(method, url, headers or {}, content)
        own = (f"repository:{self.repository}:{actions}",) if self.repository else ()
        scopes = (*own, *also)
        sent = self._auth.header(scopes)
        response = self.transport.request(method, url, _with(headers, sent), content)
        if response.status != 401:
            return response
        challenge = _challenge(response)
        fresh = self._auth.answer(challenge, scopes, sent)
        if content is not None and not isinstance(content, bytes):
            raise RenewedError(self._auth.refusal(challenge))
        response = self.transport.request(method, url, _with(headers, fresh), content)
        if response.status == 401:
            raise self._auth.refusal(_challenge(response))
        return response

    def follow(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> tuple[BaseHTTPResponse, str]:
        """Send a GET or HEAD and follow redirects; returns the answer and where it came from."""
        url = self.url(path)
        for _ in range(_REDIRECTS + 1):
            response = self.send(method, url, PULL, headers)
            if response.status not in _REDIRECT_STATUSES:
                return response, url
            location = response.headers.get("Location", "")
            response.close()
            url = self.resolve(location, url)
        raise ProtocolViolation(f"{self.name}: more than {_REDIRECTS} redirects")

    def url(self, path: str) -> str:
        """Return the full address of something below the repository."""
        return path if "://" in path else f"{self.base}/v2/{self.repository}/{path}"

    def resolve(self, location: str, url: str) -> str:
        """Return the address that a Location or Link means in an answer from `url`.

        Never from TLS to none. But a registry that does not know that a proxy before it speaks TLS
        (a common mistake) means itself, and is asked with TLS.
        """
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
            usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
            # Parsers differ over what a backslash and a second "@" mean: who is asked must be who
            # the credentials are for.
            usable = usable and _same_host(target, parts) and "@" not in parts.netloc
        except (ValueError, LocationParseError):
            usable = False
        if not usable or not target.isascii() or not target.isprintable() or "\\" in target:
            raise ProtocolViolation(f"{self.name}: sends us to {redacted(location)!r}")
        if not url.startswith("https:") or parts.scheme == "https":
            return target
        if parts.netloc.lower() == urlsplit(url).netloc.lower():
            return parts._replace(scheme="https").geturl()
        raise ProtocolViolation(
            f"{self.name}: sends us from TLS to {redacted(target)}",
            hint="the registry must know its own address: X-Forwarded-Proto, or its external URL",
        )

    def is_own(self, url: str) -> bool:
        """Whether an address is the registry itself: scheme, host and port."""
        return _origin(url) == self._origin

    def close(self) -> None:
        """Drop connections."""
        self.transport.close()


def _same_host(url: str, parts: SplitResult) -> bool:
    """Whether the library that connects reads the same host and port in an address."""
    seen = parse_url(url)
    return (seen.host or "").strip("[]").lower() == (parts.hostname or "") and (
        seen.port == parts.port
    )


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


def _challenge(response: BaseHTTPResponse) -> str:
    challenge = ", ".join(response.headers.getlist("WWW-Authenticate"))
    response.close()
    return challenge


def _with(headers: Mapping[str, str] | None, authorization: str) -> dict[str, str]:
    return {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
