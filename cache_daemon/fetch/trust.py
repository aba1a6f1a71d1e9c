"""Where connections may lead: a `modelpack.oci.guard.Guard` made of what the operator named."""

import ipaddress
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from cache_daemon.fetch.addresses import forbidden
from modelpack.spec.errors import Denied, InputError

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS: Final = (80, 443)


@dataclass(frozen=True, slots=True)
class Trust:
    """Hosts that may have any address. All others must not have one that `forbidden` knows."""

    hosts: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def of(cls, named: Iterable[str]) -> Self:
        """Read `HOST[:PORT]`; without a port both that HTTP has. Raises InputError."""
        found: set[tuple[str, int]] = set()
        for one in named:
            match = _HOST.fullmatch(one)
            if match is None or int(match[2] or 1) not in range(1, 1 << 16):
                raise InputError(f"{one!r} is not a host; expected HOST[:PORT]")
            ports = (int(match[2]),) if match[2] else _DEFAULT_PORTS
            found |= {(_canonical(match[1]), port) for port in ports}
        return cls(frozenset(found))

    def check(self, host: str, port: int, address: str, /) -> None:
        """Raise Denied for an address that nobody has named (see Guard)."""
        if (_canonical(host), port) in self.hosts:
            return
        kind = forbidden(address)
        if kind:
            shown = f"[{host}]" if ":" in host else host
            raise Denied(
                f"{shown}:{port}: leads to {address} ({kind}), which is not allowed here",
                hint="if that is meant, name it in --trusted-hosts, a registry in --registries",
            )


def _canonical(host: str) -> str:
    name = host.strip("[]").rstrip(".").lower()
    with suppress(ValueError):
        return str(ipaddress.ip_address(name))
    return name
