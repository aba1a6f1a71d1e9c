"""Where a cache daemon is: a Unix socket of this machine, or a URL with TLS and a token."""

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from modelpack.spec.errors import InputError, RegistryError, Unavailable

SECONDS: Final = 130.0  # the daemon answers within 110
_SHORTEST_TOKEN: Final = 16


class Address(Protocol):
    """Makes connections to one daemon."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What every request carries."""

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection that connects when it is used. Raises InputError."""

    def away(self, error: Exception) -> RegistryError:
        """Say in words why the daemon does not answer."""


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """A Unix socket; its mode says who may use it."""

    path: Path

    @property
    def headers(self) -> Mapping[str, str]:
        """Return nothing (see Address)."""
        return {}

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection (see Address)."""
        return _UnixConnection(self.path)

    def away(self, error: Exception) -> RegistryError:
        """Say why it does not answer (see Address)."""
        return Unavailable(
            f"{self.path}: the cache daemon does not answer: {_reason(error)}",
            hint="is modelpack-cache-daemon running, and may you use its socket? see --socket",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAddress:
    """A daemon on another node. Files in PEM; the token, one line of a file, is never printed.

    Proxies of the environment are not asked: nodes are near.
    """

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the token (see Address). Raises InputError."""
        if self.token_file is None:
            return {}
        try:
            token = self.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{self.token_file}: {_reason(error)}", hint="see --token-file"
            ) from error
        if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
            raise InputError(
                f"{self.token_file}: expected one line of at least {_SHORTEST_TOKEN} characters"
            )
        return {"Authorization": f"Bearer {token}"}

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection (see Address).

        Raises InputError for a URL or files that cannot be used, and where a token would go over
        the network in the clear.
        """
        secure, host, port = self._parts()
        if secure:
            return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=self._tls())
        if self.ca_file or self.client_cert:
            raise InputError(f"{self.url}: certificates need https://")
        if self.token_file and not _is_loopback(host):
            raise InputError(
                f"{self.url}: the token would be sent in the clear", hint="use https://"
            )
        return http.client.HTTPConnection(host, port, timeout=SECONDS)

    def away(self, error: Exception) -> RegistryError:
        """Say why it does not answer (see Address)."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return RegistryError(
                f"{self.url}: its certificate is not trusted: {error.verify_message}",
                hint="name its authority with --ca-file",
            )
        if isinstance(error, ssl.SSLError):
            return RegistryError(
                f"{self.url}: TLS: {error.reason or error}",
                hint="does it want --client-cert and --client-key, or speak no TLS?",
            )
        return Unavailable(
            f"{self.url}: the cache daemon does not answer: {_reason(error)}",
            hint="does it --listen there, and does it want --client-cert?",
        )

    def _parts(self) -> tuple[bool, str, int | None]:
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host = ""
        rest = parts.path.strip("/") + parts.query + parts.fragment if host else "x"
        if rest or parts.scheme not in ("https", "http") or "@" in parts.netloc:
            raise InputError(
                f"{self.url!r} is not the address of a node; expected https://HOST:PORT"
            )
        return parts.scheme == "https", host, port

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if self.ca_file:
                context.load_verify_locations(self.ca_file)
            if self.client_cert:
                context.load_cert_chain(self.client_cert, self.client_key, password=lambda: b"")
            elif self.client_key:
                raise InputError("--client-key needs --client-cert")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise InputError(
                f"{self.url}: certificates cannot be loaded: {_reason(error)}"
            ) from error
        return context


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("node", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
