"""HTTP as registries need it, on urllib3: bounded waits, no surprises with redirects or proxies."""

import re
import ssl
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import (
    HTTPError,
    InsecureRequestWarning,
    LocationValueError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

from modelpack.oci.guard import Guard, guarded_pools, literal_address
from modelpack.oci.headers import printable
from modelpack.oci.proxies import Proxy, proxy_for
from modelpack.oci.settings import ConnectSettings
from modelpack.spec.errors import (
    InputError,
    ModelpackError,
    ProtocolViolation,
    RegistryError,
    Unavailable,
)
from modelpack.spec.limits import MIB

_SYSTEM_CERTS_D: Final = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
_USER_AGENT: Final = "modelpack (+https://modelpack.dev)"
PROXY_HINT: Final = "put them into the environment: HTTPS_PROXY=http://user:password@host:port"
_PORTS: Final = {"http": 80, "https": 443}
_CONNECTIONS: Final = 64  # per host; as many as there can be transfers

Body = bytes | Iterable[bytes | memoryview] | None


class Transport:
    """Sends requests. Thread-safe; one connection per thread and host at a time."""

    def __init__(self, settings: ConnectSettings, home: str) -> None:
        """`home` is the host (and port) that the client certificate is for, and no other."""
        self._settings = settings
        self._home = home
        self._timeout = urllib3.Timeout(
            connect=settings.connect_seconds, read=settings.stall_seconds
        )
        if settings.insecure:  # who asks for it need not be warned of it
            urllib3.disable_warnings(InsecureRequestWarning)
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, Proxy | None], urllib3.PoolManager] = {}

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: Body = None
    ) -> BaseHTTPResponse:
        """Send one request and return the answer, its body unread; redirects are the caller's.

        Where the other side answers before it has read all of the body, and hangs up, that answer
        is returned. Raises Unavailable, ProtocolViolation, InputError for certificates and proxies
        that cannot be used, RegistryError where no repetition can help (TLS), Denied where the
        guard of the settings forbids it: then nothing was sent. What the body raises comes through.
        """
        host = urlsplit(url).netloc.rpartition("@")[2]
        if isinstance(body, bytes):
            headers = {**headers, "Content-Length": str(len(body))}
        try:
            return self._pool(url).request(
                method,
                url,
                body=body,  # type: ignore[arg-type]  # memoryviews are sent as they are
                headers={"User-Agent": _USER_AGENT, **headers},
                timeout=self._timeout,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except ModelpackError:
            raise
        except SSLError as error:
            raise _tls_error(host, error) from error
        except LocationValueError:
            # The text of this error is the whole address, whose query may be a signature.
            raise ProtocolViolation(f"{printable(host)}: not a usable address") from None
        except (HTTPError, OSError) as error:
            raise unavailable(host, error) from error

    def close(self) -> None:
        """Drop all connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        guard, proxy = self._settings.guard, proxy_for(url)
        if proxy is not None:
            _check_literal(guard, url)
        # Certificates may differ by host, so pools do.
        key = (parts.netloc if parts.scheme == "https" else "", proxy)
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                context = self._tls(parts.netloc) if parts.scheme == "https" else None
                pool = self._pools[key] = _make_pool(context, proxy, guard)
            return pool

    def _tls(self, host: str) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.create_default_context()
        try:
            if settings.insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if settings.ca_file:
                context.load_verify_locations(settings.ca_file)
            if settings.client_cert and host == self._home:
                context.load_cert_chain(settings.client_cert, settings.client_key)
            own = Path.home() / ".config/containers/certs.d"
            for directory in (base / host for base in (own, *_SYSTEM_CERTS_D)):
                for authority in sorted(directory.glob("*.crt")):
                    context.load_verify_locations(authority)
                for certificate in sorted(directory.glob("*.cert")):
                    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        except (ssl.SSLError, OSError) as error:
            raise InputError(f"{host}: certificates cannot be loaded: {error}") from error
        return context


def _check_literal(guard: Guard | None, url: str) -> None:
    """Ask the guard about a host that is an address, as the library that connects reads it."""
    parts = parse_url(url)
    if not parts.host:  # a proxy would be sent it as it is, and make of it what it likes
        raise LocationValueError(url)
    address = literal_address(parts.host)
    if guard is not None and address:
        guard(parts.host, parts.port or _PORTS.get(parts.scheme or "", 0), address)


def _make_pool(
    context: ssl.SSLContext | None, proxy: Proxy | None, guard: Guard | None
) -> urllib3.PoolManager:
    if proxy is None:
        pool = urllib3.PoolManager(maxsize=_CONNECTIONS, ssl_context=context, blocksize=MIB)
        if guard is not None:
            pool.pool_classes_by_scheme = guarded_pools(guard)
        return pool
    login = urllib3.make_headers(proxy_basic_auth=proxy.login) if proxy.login else None
    return urllib3.ProxyManager(
        proxy.url,
        proxy_headers=login,
        maxsize=_CONNECTIONS,
        ssl_context=context,
        blocksize=MIB,
    )


def unavailable(host: str, error: BaseException) -> RegistryError:
    """Say that a host cannot be reached, or has stopped to answer: Unavailable, mostly."""
    if isinstance(error, ReadTimeoutError | TimeoutError):
        return Unavailable(f"{host}: no answer in time", hint="check the network, or try later")
    cause = next((a for a in error.args if isinstance(a, OSError) and a.strerror), None)
    reason = str(cause.strerror if cause else getattr(error, "reason", None) or error)
    # urllib3 says which object failed first; only the cause is for people.
    text = re.sub(r"^.*?(?:\)|>): (?=\S)", "", reason)
    if "Tunnel connection failed: 407" in text:
        return RegistryError(f"{host}: the proxy wants a user and a password", hint=PROXY_HINT)
    return Unavailable(
        f"{host}: {text[:200]}", hint="check the name, the network and the proxy settings"
    )


def _tls_error(host: str, error: SSLError) -> RegistryError:
    text = str(error)
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return RegistryError(
            f"{host}: does not speak TLS", hint="use --plain-http if that is meant"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.rpartition("failed: ")[2].partition(" (_ssl")[0]
        hint = "name the authority with --ca-file"
        if "mismatch" in reason:
            hint = "use the name that the certificate is for"
        return RegistryError(f"{host}: its certificate is not trusted: {reason}", hint=hint)
    if "EOF" in text or "reset" in text.lower():
        return unavailable(host, error)
    return RegistryError(f"{host}: TLS: {text[:200]}", hint="does it want --client-cert?")
