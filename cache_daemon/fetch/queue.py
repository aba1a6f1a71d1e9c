"""The queue: fetches joined, ordered by urgency, run a few at a time, cancelled when unwanted."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from cache_daemon.api.errors import Cancelled, Draining
from cache_daemon.api.values import Priority, Snapshot, State
from cache_daemon.fetch.arriving import Listener
from cache_daemon.fetch.job import Job
from cache_daemon.fetch.request import Wanted
from modelpack.transfer.stop import Stop

_log = logging.getLogger("cache_daemon.queue")
_REMEMBERED = 200  # jobs that are over


class Fetches(Protocol):
    """What does the work."""

    def fetch(self, wanted: Wanted, listener: Listener, stop: Stop) -> Snapshot:
        """Bring the model here (see Fetcher)."""


class Queue:
    """Runs at most `slots` fetches at a time. Thread-safe.

    A pod's fetch does not wait for prefetches: it has a slot of its own.
    """

    def __init__(self, fetcher: Fetches, *, slots: int = 2, grace_seconds: float = 60.0) -> None:
        """`grace_seconds` is how long a fetch goes on after nobody waits for it any more.

        `ended` is called with every fetch that is over, before its waiters hear of it.
        """
        self.ended: Callable[[Job, Exception | None], None] = lambda _job, _error: None
        self._fetcher = fetcher
        self._grace = grace_seconds
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._number = 0
        self._closed = False
        self._draining = False
        self._paused = False
        kinds = [False] * slots + [True]  # the last one is for pods only
        self._threads = [
            threading.Thread(target=self._work, args=(only_pods,), daemon=True, name="fetch")
            for only_pods in kinds
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, wanted: Wanted, priority: Priority, deadline: float = 0.0) -> tuple[Job, int]:
        """Want something; returns the job, joined if there is one, and the number to leave with.

        Among those of one priority the one that is due earlier goes first; 0 is never.

        Raises Draining.
        """
        with self._changed:
            job = self._jobs.get(wanted.key)
            if job is None or job.over:
                if self._draining or self._closed:
                    raise Draining("this node is being drained", hint="ask another node")
                self._number += 1
                job = self._jobs[wanted.key] = Job(wanted, priority, self._number)
                self._forget_old()
            job.due = min(job.due, deadline or math.inf)
            waiter = job.join(priority)
            self._changed.notify_all()
            return job, waiter

    def leave(self, job: Job, waiter: int) -> None:
        """Wait no more. The last one to leave demotes the fetch; after a grace it is cancelled."""
        if job.leave(waiter) == 0 and not job.over:
            timer = threading.Timer(self._grace, self._cancel_if_unwanted, (job,))
            timer.daemon = True
            timer.start()

    def cancel(self, key: str) -> bool:
        """End a fetch, whoever waits for it; returns whether there was one."""
        with self._changed:
            job = self._jobs.get(key)
            if job is None or job.over:
                return False
            self._stop(job)
            return True

    def job(self, key: str) -> Job | None:
        """Return the fetch of a snapshot, under way or over."""
        with self._changed:
            return self._jobs.get(key)

    def jobs(self) -> list[Job]:
        """Return all fetches that are remembered, the newest last."""
        with self._changed:
            return sorted(self._jobs.values(), key=lambda one: one.number)

    def drain(self, *, on: bool = True) -> None:
        """Take nothing new; what is under way ends."""
        with self._changed:
            self._draining = on

    @property
    def busy(self) -> bool:
        """Whether anything is being fetched."""
        with self._changed:
            return any(job.state is State.FETCHING for job in self._jobs.values())

    @property
    def paused(self) -> bool:
        """Whether no more fetches begin for now."""
        return self._paused

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._draining

    def pause(self, *, on: bool = True) -> None:
        """Begin no more fetches for now."""
        with self._changed:
            self._paused = on
            self._changed.notify_all()

    def close(self, seconds: float = 5.0) -> None:
        """Stop everything; what was fetched so far is continued by the next daemon."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                if not job.over:
                    self._stop(job)
            self._changed.notify_all()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, only_pods: bool) -> None:  # noqa: FBT001  # a thread's argument
        while (job := self._take(only_pods=only_pods)) is not None:
            try:
                snapshot = job.context.run(self._fetcher.fetch, job.wanted, job, job.stop)
                self._tell(job, None)
                job.succeed(snapshot)
            except Exception as error:  # noqa: BLE001  # the waiters must hear of it, whatever it is
                self._fail(job, error)

    def _take(self, *, only_pods: bool) -> Job | None:
        with self._changed:
            while not self._closed:
                job = None if self._paused else self._most_urgent(only_pods=only_pods)
                if job is not None:
                    job.begin()
                    return job
                self._changed.wait()
        return None

    def _most_urgent(self, *, only_pods: bool) -> Job | None:
        waiting = [
            job
            for job in self._jobs.values()
            if job.state == "queued" and (not only_pods or job.priority is Priority.POD)
        ]
        return min(waiting, key=lambda job: (job.priority.rank, job.due, job.number), default=None)

    def _cancel_if_unwanted(self, job: Job) -> None:
        with self._changed:
            if not job.waiters and not job.over:
                self._stop(job)

    def _stop(self, job: Job) -> None:
        error = Cancelled(f"{job.wanted.name}: cancelled", hint="ask for it again: it continues")
        job.stop.set(error)
        if job.state == "queued":
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        if not self._closed:  # the next daemon goes on with what this one leaves
            self._tell(job, error)
        job.fail(error)

    def _tell(self, job: Job, error: Exception | None) -> None:
        try:
            self.ended(job, error)
        except Exception as trouble:  # noqa: BLE001  # what has ended has; this thread has more to do
            _log.error("the end of a fetch was not noted model=%s: %s", job.wanted.key, trouble)

    def _forget_old(self) -> None:
        over = [key for key, job in self._jobs.items() if job.over]
        for key in over[: max(0, len(over) - _REMEMBERED)]:
            del self._jobs[key]
