"""Which proxy a request goes through, as curl, Docker and Go's programs read the environment.

HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in capitals or not. NO_PROXY has hosts, domains,
addresses and networks (10.0.0.0/8: what clusters set, and Python's own reader does not know).
Loopback never goes through a proxy.
"""

import ipaddress
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from modelpack.spec.errors import InputError

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An address without credentials, and what to log in with ("user:password") if anything."""

    url: str
    login: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.url!r})"


def proxy_for(url: str) -> Proxy | None:
    """Return the proxy for a URL, or None for a direct connection; raises InputError."""
    parts = urlsplit(url)
    settings = urllib.request.getproxies_environment()
    text = settings.get(parts.scheme) or settings.get("all") or ""
    if not text or _bypassed(parts, settings.get("no", "")):
        return None
    try:
        proxy = urlsplit(text if "://" in text else f"http://{text}")
        usable = proxy.scheme in _PORTS and bool(proxy.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise InputError(
            f"the proxy for {parts.scheme} is not usable: expected http://host:port",
            hint=f"correct {parts.scheme.upper()}_PROXY in the environment",
        )
    address = proxy.netloc.rpartition("@")[2]
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}" if proxy.username else ""
    return Proxy(f"{proxy.scheme}://{address}", login)


def _bypassed(parts: SplitResult, exceptions: str) -> bool:
    host = (parts.hostname or "").lower().rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    port = parts.port or _PORTS.get(parts.scheme)
    return any(_covers(one.strip().lower(), host, port, address) for one in exceptions.split(","))


def _covers(
    exception: str,
    host: str,
    port: int | None,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
) -> bool:
    if exception == "*":
        return True
    if address is not None:
        with suppress(ValueError):  # it is no network, but a name perhaps
            return address in ipaddress.ip_network(exception, strict=False)
    name, colon, wanted = exception.rpartition(":")
    if colon and wanted.isascii() and wanted.isdigit():
        if int(wanted[:6]) != port:
            return False
        exception = name.strip("[]")
    domain = exception.removeprefix("*").removeprefix(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))
