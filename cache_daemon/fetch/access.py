"""Which registries the daemon talks to, and with whose credentials."""

import dataclasses
import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelpack.oci.connect import open_repository
from modelpack.oci.credentials import Credential, NoCredentials
from modelpack.oci.settings import ConnectSettings
from modelpack.spec.errors import Denied, Unavailable
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator allows. Registries are `host[:port]` or `host[:port]/prefix`.

    No entry means all registries with a public or private address; loopback, link-local (cloud
    metadata) and multicast ones only if they are named. Layouts only below `layouts`.
    """

    registries: tuple[str, ...] = ()
    layouts: tuple[Path, ...] = ()

    def check(self, reference: Reference) -> None:
        """Raise Denied if the daemon must not go there."""
        if reference.layout:
            path = Path(reference.layout).resolve()
            if not any(path.is_relative_to(root.resolve()) for root in self.layouts):
                raise Denied(
                    f"{reference.name}: layouts are not allowed here", hint="see --layouts"
                )
            return
        if any(_covers(entry, reference) for entry in self.registries):
            return
        if self.registries:
            raise Denied(f"{reference.name}: is not an allowed registry", hint="see --registries")
        for address in _addresses(reference.registry):
            if _is_local(address):
                raise Denied(
                    f"{reference.name}: {address} is an address of this machine itself",
                    hint="name the registry in --registries if that is meant",
                )


@dataclass(frozen=True, slots=True)
class Access:
    """Opens repositories with the credential of whoever asks. Keeps none."""

    policy: Policy = field(default_factory=Policy)
    connect: ConnectSettings = field(default_factory=ConnectSettings)

    def repository(self, reference: Reference, credential: Credential | None) -> Repository:
        """Open a repository; raises Denied where the operator does not allow it."""
        self.policy.check(reference)
        known = _Only(reference.registry, credential) if credential else NoCredentials()
        return open_repository(reference, dataclasses.replace(self.connect, credentials=known))


@dataclass(frozen=True, slots=True)
class _Only:
    """One credential, for one registry."""

    registry: str
    credential: Credential

    def get(self, registry: str, repository: str) -> Credential | None:  # noqa: ARG002
        return self.credential if registry == self.registry else None


def _covers(entry: str, reference: Reference) -> bool:
    return reference.name == entry or reference.name.startswith(f"{entry}/")


def _addresses(registry: str) -> Sequence[str]:
    host, _, port = registry.rpartition(":")
    name = (host if host and port.isdigit() else registry).strip("[]")
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.args[-1]
        raise Unavailable(f"{registry}: has no address: {reason}", hint="check the name") from None
    return sorted({str(one[4][0]).partition("%")[0] for one in found})


def _is_local(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is not None:
        ip = mapped
    return ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified
