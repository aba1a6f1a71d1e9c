"""What the daemon talks about. Frozen values; the same on disk, over HTTP and inside."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from modelpack.spec.reference import Reference

KEY_LENGTH: Final = 40


class Priority(StrEnum):
    """Why something is fetched, the most urgent first."""

    POD = "pod"
    PREFETCH = "prefetch"
    REPAIR = "repair"

    @property
    def rank(self) -> int:
        """Where it stands in the queue; 0 goes first."""
        return list(Priority).index(self)


class State(StrEnum):
    """Where a model is on its way to the node.

    WAITING: wanted, but nothing is done for it now: a credential is missing, or it is tried later.
    """

    WAITING = "waiting"
    QUEUED = "queued"
    FETCHING = "fetching"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a snapshot: its path, the id under which the store has it, its size in bytes.

    A symbolic link has a `link` instead of an id.
    """

    path: str
    id: str
    size: int
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One model's read-only tree on this node. Times are seconds since the epoch."""

    key: str
    reference: str
    repository: str  # registry and repository, or oci:DIR
    digest: str
    domain: str
    files: tuple[StoredFile, ...]
    bytes_total: int
    bytes_fetched: int
    bytes_reused: int
    fetch_seconds: float
    created: float
    bytes_cloned: int = 0  # of those reused; records of earlier versions do not have it
    namespace: str = ""  # who asked first
    phases: dict[str, float] = field(default_factory=dict)  # seconds of each

    @property
    def ids(self) -> frozenset[str]:
        """The ids of its files."""
        return frozenset(file.id for file in self.files if file.id)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lease."""

    kind: str = "process"
    name: str = ""
    namespace: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A mounted pod's hold on a snapshot. Its id is the holder's: taking it again is no change."""

    id: str
    key: str
    owner: Owner
    created: float


@dataclass(frozen=True, slots=True)
class Pin:
    """An operator's hold on a snapshot; `until` is a time, 0 for ever."""

    key: str
    created: float
    until: float = 0.0
    reason: str = ""

    def holds(self, now: float) -> bool:
        """Whether it still counts."""
        return not self.until or now < self.until


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """A model that somebody asked for and that is not here yet; no secret is in it.

    `deadline` is a time, 0 for none: what is due earlier is fetched earlier.
    """

    key: str
    reference: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    priority: Priority = Priority.PREFETCH
    namespace: str = ""
    deadline: float = 0.0
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """An artifact that was found to lie, and is not shown again."""

    digest: str
    reason: str
    created: float


def snapshot_key(digest: str, paths: Iterable[str]) -> str:
    """Return the key of a snapshot: the same artifact and the same files have the same one."""
    hasher = hashlib.sha256(digest.encode())
    for path in sorted(paths):
        hasher.update(b"\0" + path.encode())
    return hasher.hexdigest()[:KEY_LENGTH]


def domain_of(reference: Reference) -> str:
    """Return the reuse domain of a reference: registry and namespace, or the layout.

    Inside one domain bytes may be reused without receiving them. Elsewhere whoever names a private
    model's digests in a manifest of his own would be served with them.
    """
    if reference.layout:
        return reference.name
    namespace, _, _ = reference.repository.rpartition("/")
    return f"{reference.registry}/{namespace or reference.repository}"
