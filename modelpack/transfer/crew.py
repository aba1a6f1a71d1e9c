"""A few threads that work through a list of jobs.

Threads, not asyncio: receiving, hashing and writing all release the interpreter lock, and a
blocking `read` into one buffer costs less than an event loop's turn per slice (ADR 0002).
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

from modelpack.transfer.stop import Stop

Job = TypeVar("Job")
_POLL_SECONDS: Final = 0.2
_GRACE_SECONDS: Final = 2.0  # for workers between two slices; a stalled one is left behind


def work(
    jobs: Iterable[Job], do: Callable[[Job], None], *, workers: int, stop: Stop | None = None
) -> None:
    """Call `do` for every job on `workers` threads; jobs are taken lazily and in order.

    The first error stops the rest and is raised. An interrupt (Ctrl-C, SIGTERM) of the main thread
    stops them too; threads are daemons, so that a stalled connection never delays the exit.
    """
    stop = stop or Stop()
    supply = _Supply(jobs)

    def loop() -> None:
        try:
            for job in supply:
                if stop.is_set():
                    return
                do(job)
        except BaseException as error:  # noqa: BLE001  # handed to the caller, whatever it is
            stop.set(error)

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(max(1, workers))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            # A plain join() could not be interrupted by a signal handler that raises.
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
    except BaseException:
        stop.set()
        for thread in threads:
            thread.join(_GRACE_SECONDS / len(threads))
        raise
    stop.raise_if_failed()


class _Supply(Generic[Job]):
    """An iterator that threads may share."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = iter(jobs)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        with self._lock:
            return next(self._jobs)
