"""Warm-up: a model's files read into the page cache before a pod maps them.

A loader that maps files takes each page fault by itself: about 1 GB/s from a disk that reads much
faster, and 5 GB/s and more from the page cache. What is read is bounded by what the machine, and
the control group that is charged for it, can spare: warming must never evict pods.
"""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_daemon.api.values import Snapshot
from cache_daemon.space.memory import spare_memory
from cache_daemon.store.store import Store
from modelpack.disk.cached import resident
from modelpack.disk.errors import disk_errors

_WINDOW: Final = 64 << 20  # bytes between two looks at how much memory is left
_THREADS: Final = 4  # disks want several requests at a time


@dataclass(frozen=True, slots=True)
class Warmed:
    """How warm a model is. Bytes and seconds; `done` is False while it is still being read."""

    bytes_total: int
    bytes_resident: int
    bytes_read: int
    seconds: float
    done: bool
    short_of_memory: bool = False


class Warmer:
    """Warms models, one at a time, joined when several ask. Thread-safe."""

    def __init__(self, store: Store, keep_free: float = 0.1) -> None:
        """`keep_free` is the share of the machine's memory that warming leaves available."""
        self._store = store
        self._keep_free = keep_free
        self._lock = threading.Lock()
        self._running: dict[str, Future[Warmed]] = {}
        self._one = ThreadPoolExecutor(1, thread_name_prefix="warm")

    def warm(self, snapshot: Snapshot, seconds: float) -> Warmed:
        """Read a snapshot into the page cache; returns how far it is when the time is over.

        It goes on then, and the next call joins it.
        """
        with self._lock:
            joined = self._running.get(snapshot.key)
            future = joined or self._one.submit(self._warm, snapshot)
            self._running[snapshot.key] = future
        if joined is None:  # not under the lock: what is done already calls back at once
            future.add_done_callback(lambda _done: self._forget(snapshot.key))
        started = time.monotonic()
        try:
            return future.result(seconds)
        except NotYet:
            here = sum(resident(path) for path in self._files(snapshot))
            took = round(time.monotonic() - started, 3)
            return Warmed(snapshot.bytes_total, here, 0, took, done=False)

    def close(self) -> None:
        """Begin nothing new."""
        self._one.shutdown(wait=False, cancel_futures=True)

    def _warm(self, snapshot: Snapshot) -> Warmed:
        started = time.monotonic()
        files = list(self._files(snapshot))
        missing = {path: path.stat().st_size - resident(path) for path in files}
        read = 0
        short = False
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="warm-file") as crew:
            windows = [window for path in files if missing[path] for window in _windows(path)]
            for at in range(0, len(windows), _THREADS):
                some = windows[at : at + _THREADS]
                if sum(length for *_, length in some) > spare_memory(self._keep_free):
                    short = True
                    break
                read += sum(crew.map(_read, some))
        here = sum(resident(path) for path in files)
        took = round(time.monotonic() - started, 3)
        return Warmed(
            sum(path.stat().st_size for path in files), here, read, took,
            done=True, short_of_memory=short,
        )  # fmt: skip

    def _files(self, snapshot: Snapshot) -> Iterator[Path]:
        for id_ in dict.fromkeys(file.id for file in snapshot.files if file.id):
            yield self._store.files.path(id_)

    def _forget(self, key: str) -> None:
        with self._lock:
            self._running.pop(key, None)


def _windows(path: Path) -> Iterator[tuple[Path, int, int]]:
    size = path.stat().st_size
    for offset in range(0, size, _WINDOW):
        yield path, offset, min(_WINDOW, size - offset)


def _read(window: tuple[Path, int, int]) -> int:
    """Read a window without copying a byte: from the page cache to nowhere, in the kernel."""
    path, offset, length = window
    done = 0
    with disk_errors("read", path), path.open("rb") as file, Path("/dev/null").open("wb") as sink:
        while done < length:
            count = os.sendfile(sink.fileno(), file.fileno(), offset + done, length - done)
            if not count:
                break
            done += count
    return done
