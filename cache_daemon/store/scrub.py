"""Reading everything again, slowly: disks forget, and nobody else would notice."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from cache_daemon.api.values import Snapshot, StoredFile
from cache_daemon.store.files import file_id
from cache_daemon.store.store import Store
from modelpack.chunks.cut import CHUNK_SIZE, cut
from modelpack.spec.digest import CHUNK_HASHERS
from modelpack.spec.errors import ModelpackError
from modelpack.spec.index import decode

_ALGORITHM: Final = "blake3"  # of files that came without an index
_log = logging.getLogger("cache_daemon.scrub")
Pace = Callable[[int], None]


def damaged(store: Store, snapshot: Snapshot, pace: Pace) -> set[str]:
    """Return the ids of files whose bytes are not those that were verified when they came.

    `pace` is told of every chunk that was read, in bytes, and may wait. A file that cannot be read
    is damaged, too.
    """
    return {id_ for id_, right in _files(store, snapshot, pace) if not right}


def _files(store: Store, snapshot: Snapshot, pace: Pace) -> Iterator[tuple[str, bool]]:
    data = store.index(snapshot.key)
    index = decode(data) if data else None
    lengths_of = {}
    algorithm = _ALGORITHM
    if index is not None:
        algorithm = index.header.algorithm
        lengths_of = {
            file.path: index.lengths[file.first : file.first + file.chunks] for file in index.files
        }
    for file in snapshot.files:
        if file.id:
            lengths = lengths_of.get(file.path) or cut(file.size, None, CHUNK_SIZE)
            path = store.files.path(file.id)
            yield file.id, _right(path, file, lengths, algorithm, pace)


def _right(
    path: Path, file: StoredFile, lengths: Sequence[int], algorithm: str, pace: Pace
) -> bool:
    digests = bytearray()
    offset = 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_size != file.size:
            return False
        for length in lengths:
            hasher = CHUNK_HASHERS[algorithm]()
            hasher.update(os.pread(fd, length, offset))
            digests += hasher.digest()
            offset += length
            pace(length)
    except OSError:
        return False
    finally:
        os.close(fd)
    return file_id(algorithm, file.size, lengths, bytes(digests)) == file.id


class Scrub:
    """A thread that goes round all snapshots, and quarantines what is not right."""

    def __init__(self, store: Store, bytes_per_second: int, round_seconds: float) -> None:
        """A round begins at most every `round_seconds`; a rate of 0 reads nothing."""
        self._store = store
        self._rate = bytes_per_second
        self._round = round_seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="scrub")
        self.bytes_read = 0

    def start(self) -> None:
        """Begin, unless the rate is 0."""
        if self._rate:
            self._thread.start()

    def close(self) -> None:
        """End soon."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def once(self) -> set[str]:
        """Go round once; returns the ids of the files that were quarantined."""
        found: set[str] = set()
        for snapshot in self._store.snapshots():
            if self._closed.is_set():
                break
            bad = damaged(self._store, snapshot, self._pace)
            # It may have been evicted, and fetched again, meanwhile: look twice.
            bad = bad and bad & damaged(self._store, snapshot, self._pace)
            if bad and not self._closed.is_set() and self._store.has(snapshot.key):
                self._store.quarantine(bad)
                self._store.counts.damaged(bad)
                found |= bad
        return found

    def _run(self) -> None:
        while not self._closed.is_set():
            started = time.monotonic()
            try:
                self.once()
            except (ModelpackError, OSError):
                self._store.counts.store_errors.add()
                _log.exception("the scrub stopped half-way")
            self._closed.wait(max(1.0, self._round - (time.monotonic() - started)))

    def _pace(self, bytes_: int) -> None:
        self.bytes_read += bytes_
        if self._rate:
            self._closed.wait(bytes_ / self._rate)
