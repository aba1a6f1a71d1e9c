"""Models as callers see them: here, on their way, or waiting."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cache_daemon.api.values import Snapshot, State, Want
from cache_daemon.fetch.job import Job, Status
from cache_daemon.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as callers see it: on the node, on its way, or failed. Bytes, seconds."""

    key: str
    reference: str
    state: State
    namespace: str = ""
    bytes_total: int = 0
    bytes_unique: int = 0
    bytes_fetched: int = 0
    bytes_reused: int = 0
    bytes_cloned: int = 0
    files: int = 0
    fetch_seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    created: float = 0.0
    last_used: float = 0.0
    uses: int = 0
    pinned: bool = False
    leases: int = 0
    path: str = ""
    fetch: Status | None = None


def here(store: Store, snapshots: Sequence[Snapshot]) -> list[Model]:
    """Describe snapshots, the last used first."""
    usage = store.usage()
    links = store.links()
    pins = {pin.key for pin in store.pins()}
    leases = [lease.key for lease in store.leases()]
    found = []
    for one in snapshots:
        used = usage.get(one.key)
        found.append(
            Model(
                key=one.key,
                reference=one.reference,
                state=State.READY,
                namespace=one.namespace,
                bytes_total=one.bytes_total,
                bytes_unique=_unique(one, links),
                bytes_fetched=one.bytes_fetched,
                bytes_reused=one.bytes_reused,
                bytes_cloned=one.bytes_cloned,
                files=len(one.files),
                fetch_seconds=one.fetch_seconds,
                phases=one.phases,
                created=one.created,
                last_used=used.last if used else 0.0,
                uses=used.uses if used else 0,
                pinned=one.key in pins,
                leases=leases.count(one.key),
                path=str(store.tree(one.key)),
            )
        )
    return sorted(found, key=lambda model: (-model.last_used, model.key))


def on_its_way(job: Job) -> Model:
    """Describe a fetch."""
    status = job.status()
    return Model(
        key=status.key, reference=status.reference, state=status.state, fetch=status,
        bytes_total=status.bytes_total, namespace=job.wanted.namespace,
    )  # fmt: skip


def waiting(want: Want, error: Exception | None) -> Model:
    """Describe a model for which nothing can be done now."""
    words = str(error) if error else "to be fetched"
    hint = str(getattr(error, "hint", "")) or "ask for it again, with a credential if it needs one"
    status = Status(
        key=want.key, reference=want.reference, state=State.WAITING, priority=want.priority,
        phase="", bytes_total=0, bytes_done=0, bytes_per_second=0.0, waiters=0, error=words,
        hint=hint, retry=True,
    )  # fmt: skip
    return Model(
        key=want.key, reference=want.reference, state=State.WAITING, fetch=status,
        namespace=want.namespace,
    )  # fmt: skip


def _unique(snapshot: Snapshot, links: dict[str, int]) -> int:
    sizes = {file.id: file.size for file in snapshot.files if file.id}
    return sum(size for id_, size in sizes.items() if links.get(id_, 1) <= 1)
