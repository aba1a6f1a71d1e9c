"""The node: everything that can be asked of the daemon, without HTTP."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cache_daemon.api.errors import NoSuchModel
from cache_daemon.api.values import Lease, Owner, Priority, Snapshot, State
from cache_daemon.fetch.access import Access
from cache_daemon.fetch.grants import Grants
from cache_daemon.fetch.job import Job, Status
from cache_daemon.fetch.queue import Queue
from cache_daemon.fetch.request import Wanted, resolve
from cache_daemon.store.store import Store
from modelpack.oci.credentials import Credential
from modelpack.spec.errors import Denied, NotFound, Unauthorized, Unavailable
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository

_TRIES = 3  # an eviction may come between the end of a fetch and the lease on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a caller wants, and on whose behalf."""

    ref: str
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    priority: Priority = Priority.PREFETCH
    credential: Credential | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as callers see it: on the node, on its way, or failed. Bytes, seconds."""

    key: str
    reference: str
    state: State
    bytes_total: int = 0
    bytes_unique: int = 0
    bytes_fetched: int = 0
    bytes_reused: int = 0
    bytes_cloned: int = 0
    files: int = 0
    fetch_seconds: float = 0.0
    created: float = 0.0
    last_used: float = 0.0
    uses: int = 0
    pinned: bool = False
    leases: int = 0
    path: str = ""
    fetch: Status | None = None


class Node:
    """Ties store, queue and registries together. Thread-safe."""

    def __init__(
        self, store: Store, access: Access, queue: Queue, grants: Grants | None = None
    ) -> None:
        self.store = store
        self.queue = queue
        self.grants = grants or Grants(600, 3600)
        self._access = access
        self._pin_later: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()
        self.queue.arrived = self._settle_pins

    def ensure(self, ask: Ask, *, pin: bool = False, until: float = 0.0) -> Model:
        """See to it that a model comes to the node; returns at once. Idempotent.

        The caller's right to it is known, or is checked with the registry, also if the model is
        here. Raises the registry's and the artifact's errors, Draining.
        """
        key, wanted = self._find(ask)
        if pin:
            with self._lock:
                self._pin_later[key] = (until, "")
        if wanted and not self.store.has(key):
            self.queue.submit(wanted, ask.priority)
        self._settle_pins(key)
        return self.model(key)

    def lease(self, id_: str, ask: Ask, owner: Owner, seconds: float) -> Lease | Model:
        """Hold a model for somebody, fetching it if need be; waits at most so long.

        Returns the model as it is when the time is over: ask again with the same id. Raises what
        the fetch ended with.
        """
        deadline = time.monotonic() + seconds
        key, wanted = self._find(ask)
        for _ in range(_TRIES):
            try:
                return self.store.lease(id_, key, owner)
            except NoSuchModel:
                wanted = wanted or self._resolve(ask)
            job, waiter = self.queue.submit(wanted, Priority.POD)
            try:
                snapshot = job.wait(max(0.0, deadline - time.monotonic()))
            finally:
                self.queue.leave(job, waiter)
            if snapshot is None:
                break
        return self.model(key)

    def models(self) -> list[Model]:
        """Return all models, those on their way first."""
        stored = {one.key for one in self.store.snapshots()}
        jobs = [job for job in self.queue.jobs() if job.wanted.key not in stored]
        return [self._on_its_way(job) for job in jobs] + self._here()

    def model(self, key: str) -> Model:
        """Return one model. Raises NoSuchModel."""
        job = self.queue.job(key)
        if self.store.has(key) or job is None:
            self.store.snapshot(key)
            return next(one for one in self._here() if one.key == key)
        return self._on_its_way(job)

    def watch(self, key: str, every: float = 1.0) -> Iterator[Model]:
        """Yield a model whenever it changes, until it is here or will not come."""
        job = self.queue.job(key)
        if job is None or self.store.has(key):
            yield self.model(key)
            return
        for _ in job.watch(every):
            yield self.model(key)

    def remove(self, key: str) -> int:
        """Remove a model, or cancel its fetch; returns the bytes freed. Raises InUse."""
        if self.queue.cancel(key) and not self.store.has(key):
            return 0
        return self.store.remove(key)

    def pin(self, key: str, *, until: float = 0.0, reason: str = "") -> None:
        """Keep a model; one on its way is kept when it arrives."""
        job = self.queue.job(key)
        if not self.store.has(key) and job is not None and not job.over:
            with self._lock:
                self._pin_later[key] = (until, reason)
            return
        self.store.pin(key, until=until, reason=reason)

    def unpin(self, key: str) -> None:
        """Stop keeping a model."""
        with self._lock:
            self._pin_later.pop(key, None)
        self.store.unpin(key)

    def close(self) -> None:
        """Stop; what was fetched so far is continued by the next daemon."""
        self.queue.close()
        self.store.close()

    def _find(self, ask: Ask) -> tuple[str, Wanted | None]:
        """Return the key of a model, and what to fetch unless it is known to be here.

        A grant spares the question only where a digest is asked for: what a tag names is the
        registry's to say, as long as it can be reached.
        """
        reference = Reference.parse(ask.ref)
        self._access.policy.check(reference)
        identity = self._identity(ask)
        grant = self.grants.fresh(identity) if reference.digest else None
        if grant is None or not self.store.has(grant.key):
            try:
                wanted = self._resolve(ask)
            except Unavailable:
                grant = self.grants.stale(identity)
                if grant is None or not self.store.has(grant.key):
                    raise
            else:
                return wanted.key, wanted
        return grant.key, None

    def _resolve(self, ask: Ask) -> Wanted:
        reference = Reference.parse(ask.ref)
        identity = self._identity(ask)

        def open_(reference: Reference) -> Repository:
            return self._access.repository(reference, ask.credential)

        try:
            wanted = resolve(reference, open_, ask.include, ask.exclude)
        except (NotFound, Unauthorized, Denied):
            self.grants.forget(identity)
            raise
        self.grants.remember(identity, reference.name, str(wanted.artifact.digest), wanted.key)
        return wanted

    def _identity(self, ask: Ask) -> bytes:
        what = (ask.ref, *(f"+{one}" for one in ask.include), *(f"-{one}" for one in ask.exclude))
        return self.grants.identity(ask.credential, *what)

    def _settle_pins(self, key: str) -> None:
        with self._lock:
            if self.store.has(key) and key in self._pin_later:
                until, reason = self._pin_later.pop(key)
                self.store.pin(key, until=until, reason=reason)

    def _here(self) -> list[Model]:
        usage = self.store.usage()
        links = self.store.links()
        pins = {pin.key for pin in self.store.pins()}
        leases = [lease.key for lease in self.store.leases()]
        found = []
        for one in self.store.snapshots():
            used = usage.get(one.key)
            found.append(
                Model(
                    key=one.key,
                    reference=one.reference,
                    state=State.READY,
                    bytes_total=one.bytes_total,
                    bytes_unique=_unique(one, links),
                    bytes_fetched=one.bytes_fetched,
                    bytes_reused=one.bytes_reused,
                    bytes_cloned=one.bytes_cloned,
                    files=len(one.files),
                    fetch_seconds=one.fetch_seconds,
                    created=one.created,
                    last_used=used.last if used else 0.0,
                    uses=used.uses if used else 0,
                    pinned=one.key in pins,
                    leases=leases.count(one.key),
                    path=str(self.store.tree(one.key)),
                )
            )
        return sorted(found, key=lambda model: (-model.last_used, model.key))

    def _on_its_way(self, job: Job) -> Model:
        status = job.status()
        return Model(
            key=status.key, reference=status.reference, state=status.state, fetch=status,
            bytes_total=status.bytes_total,
        )  # fmt: skip


def _unique(snapshot: Snapshot, links: dict[str, int]) -> int:
    sizes = {file.id: file.size for file in snapshot.files if file.id}
    return sum(size for id_, size in sizes.items() if links.get(id_, 1) <= 1)
