"""The node: everything that can be asked of the daemon, without HTTP."""

import time
from collections.abc import Iterator

from cache_daemon.api.errors import NoSuchModel
from cache_daemon.api.values import Lease, Owner, Priority, State
from cache_daemon.fetch import view
from cache_daemon.fetch.access import Access
from cache_daemon.fetch.finding import Ask, Finder
from cache_daemon.fetch.grants import Grants
from cache_daemon.fetch.job import Job
from cache_daemon.fetch.keeper import Keeper
from cache_daemon.fetch.queue import Queue
from cache_daemon.fetch.view import Model
from cache_daemon.observe.spans import span
from cache_daemon.store.store import Store
from cache_daemon.store.warm import Warmed, Warmer

__all__ = ["Ask", "Model", "Node"]
_TRIES = 3  # an eviction may come between the end of a fetch and the lease on it


class Node:
    """Ties store, queue and registries together. Thread-safe."""

    def __init__(
        self,
        store: Store,
        access: Access,
        queue: Queue,
        grants: Grants | None = None,
        warmer: Warmer | None = None,
    ) -> None:
        self.store = store
        self.queue = queue
        self.grants = grants or Grants(600, 3600)
        self._warmer = warmer or Warmer(store)
        self._finder = Finder(store, access, self.grants)
        self._keeper = Keeper(store, queue, self._finder)

    def start(self) -> None:
        """Go on with what an earlier daemon was asked for."""
        self._keeper.start()

    def ensure(self, ask: Ask, *, pin: bool = False, until: float = 0.0) -> Model:
        """See to it that a model comes to the node; returns at once. Idempotent.

        The caller's right to it is known, or is checked with the registry, also if the model is
        here. Raises the registry's and the artifact's errors, Draining, Refused.
        """
        with span("ensure", reference=ask.ref):
            key, wanted = self._finder.find(ask)
            if wanted and not self.store.has(key):
                self._keeper.want(ask, wanted)
            if pin:
                self.store.pin(key, until=until)
            return self.model(key)

    def lease(self, id_: str, ask: Ask, owner: Owner, seconds: float) -> Lease | Model:
        """Hold a model for somebody, fetching it if need be; waits at most so long.

        Returns the model as it is when the time is over: ask again with the same id. Raises what
        the fetch ended with.
        """
        started, outcome = time.monotonic(), "failed"
        with span("lease", reference=ask.ref, lease=id_) as here:
            try:
                found = self._lease(id_, ask, owner, seconds)
                outcome = "held" if isinstance(found, Lease) else "waiting"
            finally:
                here.note(outcome=outcome)
                self.store.counts.leases.observe(outcome, time.monotonic() - started)
        return found

    def _lease(self, id_: str, ask: Ask, owner: Owner, seconds: float) -> Lease | Model:
        deadline = time.monotonic() + seconds
        key, wanted = self._finder.find(ask)
        for _ in range(_TRIES):
            try:
                return self.store.lease(id_, key, owner)
            except NoSuchModel:
                wanted = wanted or self._finder.resolve(ask)
            job, waiter = self.queue.submit(wanted, Priority.POD)
            try:
                snapshot = job.wait(max(0.0, deadline - time.monotonic()))
            finally:
                self.queue.leave(job, waiter)
            if snapshot is None:
                break
        return self.model(key)

    def warm(self, key: str, seconds: float) -> Warmed:
        """Bring a model into the page cache, as far as there is room; waits at most so long."""
        return self._warmer.warm(self.store.snapshot(key), seconds)

    def join(self, ask: Ask) -> tuple[Job, int] | None:
        """Wait for a model without holding it; None if it is here. Raises as `ensure`."""
        wanted = self._finder.resolve(ask)
        return None if self.store.has(wanted.key) else self.queue.submit(wanted, ask.priority)

    def models(self) -> list[Model]:
        """Return all models, those on their way first."""
        every = self.queue.jobs()
        stored = self.store.snapshots()
        keys = {one.key for one in stored}
        # What arrived before, and is not here, has been removed since.
        jobs = [job for job in every if job.wanted.key not in keys and job.state is not State.READY]
        wants = {one.key: one for one in self.store.wants() if one.key not in keys}
        moving = [
            view.waiting(wants[job.wanted.key], job.error)
            if job.over and job.wanted.key in wants
            else view.on_its_way(job)
            for job in jobs
        ]
        known = {one.key for one in moving}
        idle = [
            view.waiting(want, self._keeper.problem(key))
            for key, want in wants.items()
            if key not in known
        ]
        return [*moving, *idle, *view.here(self.store, stored)]

    def model(self, key: str) -> Model:
        """Return one model. Raises NoSuchModel."""
        for one in self.models():
            if one.key == key:
                return one
        raise NoSuchModel(f"{key}: no such model on this node", hint="see: modelpack node ls")

    def waiting(self) -> dict[str, int]:
        """Return how many prefetches wait for a credential, and how many for another try."""
        return self._keeper.waiting()

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
        wanted = self.store.unwant(key)
        cancelled = self.queue.cancel(key)
        if (wanted or cancelled) and not self.store.has(key):
            return 0
        return self.store.remove(key)

    def pin(self, key: str, *, until: float = 0.0, reason: str = "") -> None:
        """Keep a model; one on its way is kept when it arrives. Raises NoSuchModel."""
        self.model(key)
        self.store.pin(key, until=until, reason=reason)

    def unpin(self, key: str) -> None:
        """Stop keeping a model. Raises NoSuchModel."""
        if not self.store.unpin(key):
            self.model(key)

    def close(self) -> None:
        """Stop; what was fetched so far is continued by the next daemon."""
        self._keeper.close()
        self.queue.close()
        self.store.close()
