"""Which registries the daemon talks to, and with whose credentials."""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cache_daemon.fetch.trust import Trust
from modelpack.oci.connect import open_repository
from modelpack.oci.credentials import Credential, NoCredentials
from modelpack.oci.settings import ConnectSettings
from modelpack.spec.errors import Denied
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository


@dataclass(frozen=True)
class Policy:
    """What the operator allows. Registries are `host[:port]` or `host[:port]/prefix`.

    No entry means all registries. Whatever leads there, no connection is made to this machine
    itself, to cloud metadata and the like (see `addresses`), except to hosts of `registries` and to
    `trusted` ones, `host[:port]`. Layouts only below `layouts`.
    """

    registries: tuple[str, ...] = ()
    layouts: tuple[Path, ...] = ()
    trusted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError for what is not a host."""
        _ = self.trust

    @cached_property
    def trust(self) -> Trust:
        """What connections are checked with."""
        return Trust.of((*(one.partition("/")[0] for one in self.registries), *self.trusted))

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


@dataclass(frozen=True, slots=True)
class Access:
    """Opens repositories with the credential of whoever asks. Keeps none."""

    policy: Policy = field(default_factory=Policy)
    connect: ConnectSettings = field(default_factory=ConnectSettings)

    def repository(self, reference: Reference, credential: Credential | None) -> Repository:
        """Open a repository; raises Denied where the operator does not allow it.

        Its methods raise Denied, too, before they send anything to an address that is not allowed.
        """
        self.policy.check(reference)
        known = _Only(reference.registry, credential) if credential else NoCredentials()
        settings = dataclasses.replace(
            self.connect, credentials=known, guard=self.policy.trust.check
        )
        return open_repository(reference, settings)


@dataclass(frozen=True, slots=True)
class _Only:
    """One credential, for one registry."""

    registry: str
    credential: Credential

    def get(self, registry: str, repository: str) -> Credential | None:  # noqa: ARG002
        return self.credential if registry == self.registry else None


def _covers(entry: str, reference: Reference) -> bool:
    return reference.name == entry or reference.name.startswith(f"{entry}/")
