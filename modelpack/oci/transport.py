"""HTTP as registries need it, on urllib3: bounded waits, no surprises with redirects or proxies."""

import re
import ssl
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, ReadTimeoutError, SSLError
from urllib3.response import BaseHTTPResponse

from modelpack.oci.settings import ConnectSettings
from modelpack.spec.errors import InputError, RegistryError, Unavailable
from modelpack.spec.limits import MIB

_CERTS_D: Final = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
_USER_AGENT: Final = "modelpack"
_CONNECTIONS: Final = 64  # per host; as many as there can be transfers

Body = bytes | Iterable[bytes | memoryview] | None


class Transport:
    """Sends requests. Thread-safe; one connection per thread and host at a time."""

    def __init__(self, settings: ConnectSettings) -> None:
        self._settings = settings
        self._timeout = urllib3.Timeout(
            connect=settings.connect_seconds, read=settings.stall_seconds
        )
        self._pools: dict[tuple[str, str], urllib3.PoolManager] = {}

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: Body = None
    ) -> BaseHTTPResponse:
        """Send one request and return the answer, its body unread; redirects are the caller's.

        Raises Unavailable, or RegistryError where no repetition can help (certificates).
        """
        host = urlsplit(url).netloc
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
        except SSLError as error:
            raise _tls_error(host, error) from error
        except LocationParseError as error:
            raise RegistryError(f"{host}: an address that cannot be used: {error}") from error
        except (HTTPError, OSError) as error:
            raise unavailable(host, error) from error

    def close(self) -> None:
        """Drop all connections."""
        for pool in self._pools.values():
            pool.clear()

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = _proxy(parts.scheme, parts.hostname or "")
        # Certificates may differ by host, so pools do.
        key = (parts.netloc if parts.scheme == "https" else "", proxy)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = self._make_pool(parts.netloc, parts.scheme, proxy)
        return pool

    def _make_pool(self, host: str, scheme: str, proxy: str) -> urllib3.PoolManager:
        context = self._tls(host) if scheme == "https" else None
        if proxy:
            return urllib3.ProxyManager(
                proxy, maxsize=_CONNECTIONS, ssl_context=context, blocksize=MIB
            )
        return urllib3.PoolManager(maxsize=_CONNECTIONS, ssl_context=context, blocksize=MIB)

    def _tls(self, host: str) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.create_default_context()
        try:
            if settings.insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if settings.ca_file:
                context.load_verify_locations(settings.ca_file)
            if settings.client_cert:
                context.load_cert_chain(settings.client_cert, settings.client_key)
            for directory in (base / host for base in _CERTS_D):
                for authority in sorted(directory.glob("*.crt")):
                    context.load_verify_locations(authority)
                for certificate in sorted(directory.glob("*.cert")):
                    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        except (ssl.SSLError, OSError) as error:
            raise InputError(f"{host}: certificates cannot be loaded: {error}") from error
        return context


def unavailable(host: str, error: BaseException) -> Unavailable:
    """Say that a host cannot be reached, or has stopped to answer."""
    if isinstance(error, ReadTimeoutError | TimeoutError):
        return Unavailable(f"{host}: no answer in time", hint="check the network, or try later")
    cause = next((a for a in error.args if isinstance(a, OSError) and a.strerror), None)
    reason = str(cause.strerror if cause else getattr(error, "reason", None) or error)
    # urllib3 says which object failed first; only the cause is for people.
    text = re.sub(r"^.*?(?:\)|>): (?=\S)", "", reason)
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
        return RegistryError(
            f"{host}: its certificate is not trusted: {reason}",
            hint="name the authority with --ca-file",
        )
    if "EOF" in text or "reset" in text.lower():
        return unavailable(host, error)
    return RegistryError(f"{host}: TLS: {text[:200]}", hint="does it want --client-cert?")


def _proxy(scheme: str, host: str) -> str:
    if urllib.request.proxy_bypass(host):
        return ""
    proxies = urllib.request.getproxies()
    found = proxies.get(scheme) or proxies.get("all") or ""
    return found if not found or "://" in found else f"http://{found}"
