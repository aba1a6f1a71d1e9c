"""Connections that somebody is asked about before they are made.

A daemon that fetches what others name could be talked into sending requests to what only this
machine reaches: by a reference, a name whose addresses change, a token realm, a redirect. All of
them end in one place: the connection. So it is there that the addresses are looked at.
"""

import ipaddress
import socket
from contextlib import suppress
from typing import Protocol

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util.connection import allowed_gai_family


class Guard(Protocol):
    """Says where connections may lead. Called from many threads."""

    def __call__(self, host: str, port: int, address: str, /) -> None:
        """Raise Denied if there must be no connection to this address; `host` is its name."""


def guarded_pools(guard: Guard) -> dict[str, type[HTTPConnectionPool]]:
    """Return the pools of urllib3, by scheme, with connections that ask a guard.

    It is asked about every address of the host before the first packet leaves, and one that it
    refuses refuses the host. Connected is to those very addresses: a name cannot mean something
    else a moment later.
    """

    class Guarded(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            named = self._dns_host
            addresses = _addresses(self)
            for address in addresses:
                guard(self.host, self.port, address)
            failure: Exception = NewConnectionError(self, "the name has no address")
            for address in addresses:
                self._dns_host = address
                try:
                    return super()._new_conn()
                except (NewConnectionError, ConnectTimeoutError) as error:
                    failure = error
                finally:
                    self._dns_host = named  # what certificates are compared with
            raise failure

    class GuardedTls(Guarded, HTTPSConnection):
        pass

    class Pool(HTTPConnectionPool):
        ConnectionCls = Guarded

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = GuardedTls

    return {"http": Pool, "https": TlsPool}


def literal_address(host: str) -> str:
    """Return the address that a host is by itself, without asking anybody; "" if it is a name.

    In all spellings that a resolver takes: 2130706433, 0x7f.1 and 127.1 are 127.0.0.1.
    """
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return "127.0.0.1"
    with suppress(ValueError):
        return str(ipaddress.ip_address(host.partition("%")[0]))
    with suppress(OSError):
        return socket.inet_ntoa(socket.inet_aton(host))
    return ""


def _addresses(connection: HTTPConnection) -> list[str]:
    host = connection._dns_host.strip("[]")  # noqa: SLF001  # with its final dot, as urllib3 does
    try:
        found = socket.getaddrinfo(host, connection.port, allowed_gai_family(), socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    except UnicodeError:
        raise LocationParseError(f"{host!r} is not a name") from None
    return list(dict.fromkeys(str(one[4][0]) for one in found))
