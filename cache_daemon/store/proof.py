"""Layers proven: the SHA-256 that other tools go by, computed here over the files that are kept.

A chunk index is believed because the manifest's digest covers it; that it says the same as the
layers is only known when somebody has hashed them. Until then no layer is offered to anybody.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from cache_daemon.api.values import Snapshot
from cache_daemon.store.layers import Layer, Literal, index_layer, indexed_layers, raw_layers
from cache_daemon.store.scrub import damaged
from cache_daemon.store.snapshots import Papers
from cache_daemon.store.store import Store
from modelpack.spec.errors import ModelpackError
from modelpack.spec.index import decode
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import Manifest
from modelpack.spec.manifest import decode as decode_manifest

_NICE: Final = 10
_PAUSE_SECONDS: Final = 0.2
_log = logging.getLogger("cache_daemon.proof")


def offered(snapshot: Snapshot, papers: Papers) -> list[Layer]:
    """Return the layers that can be made of a snapshot's files; small blobs are not among them."""
    manifest = _manifest(papers)
    if manifest is None:
        return []
    if not papers.index:
        return list(raw_layers(manifest, snapshot))
    paths = {file.path for file in snapshot.files}
    return list(indexed_layers(decode(papers.index), paths.__contains__))


def companions(papers: Papers) -> list[Layer]:
    """Return the blobs beside the layers of files: the config, and the chunk index as a layer."""
    manifest = _manifest(papers)
    if manifest is None:
        return []
    found = []
    if papers.config:
        found.append(Layer(manifest.config.digest, len(papers.config), (Literal(papers.config),)))
    if papers.index:
        found += index_layer(manifest, decode(papers.index))
    return [one for one in found if not wrong_layers([one], {})]


def wrong_layers(layers: Iterable[Layer], paths: Mapping[str, Path]) -> list[str]:
    """Return the digests of layers whose bytes are others. Raises OSError."""
    return [one.digest for one in layers if not right(one, paths, lambda _bytes: None)]


def right(layer: Layer, paths: Mapping[str, Path], pace: Callable[[int], None]) -> bool:
    """Whether a layer has its digest. `pace` hears of bytes read, and may wait. Raises OSError."""
    hasher = hashlib.new(layer.digest.partition(":")[0])
    for segment in layer.segments:
        if isinstance(segment, Literal):
            hasher.update(segment.data)
            continue
        with paths[segment.path].open("rb", buffering=0) as file:
            end = segment.offset + segment.length
            for at in range(segment.offset, end, MIB):
                hasher.update(os.pread(file.fileno(), min(MIB, end - at), at))
                pace(MIB)
    return hasher.hexdigest() == layer.digest.partition(":")[2]


def _manifest(papers: Papers) -> Manifest | None:
    if not papers.manifest:
        return None
    manifest = decode_manifest(papers.manifest, "the manifest of a snapshot")
    return manifest if isinstance(manifest, Manifest) else None


class Prover:
    """A thread that proves the layers of snapshots, the newest first.

    A layer that is wrong although all chunks are right means that the artifact lies: it is not
    shown any more.
    """

    def __init__(self, store: Store, busy: Callable[[], bool] = lambda: False) -> None:
        """As long as the daemon is `busy`, only what somebody waits for is proven."""
        self._store = store
        self._busy = busy
        self._waiting = 0
        self._changed = threading.Condition()
        self._queue: list[str] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="prover")
        self.bytes_read = 0
        store.on_published = self.want

    def start(self) -> None:
        """Begin with what is not proven yet."""
        for snapshot in self._store.snapshots():
            self.want(snapshot.key)
        self._thread.start()

    def close(self) -> None:
        """End soon."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(5)

    def want(self, key: str) -> None:
        """Prove this snapshot next."""
        with self._changed:
            if key in self._queue:
                self._queue.remove(key)
            self._queue.append(key)
            self._changed.notify_all()

    def wait(self, key: str, digest: str, seconds: float) -> bool:
        """Wait for a layer to be proven; returns whether it is."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._waiting += 1
        try:
            return self._wait(key, digest, deadline)
        finally:
            with self._changed:
                self._waiting -= 1

    def _wait(self, key: str, digest: str, deadline: float) -> bool:
        while digest not in self._store.proven(key):
            with self._changed:
                left = deadline - time.monotonic()
                if left <= 0 or self._closed or not self._store.has(key):
                    return False
                if key not in self._queue:
                    self._queue.append(key)
                    self._changed.notify_all()
                self._changed.wait(min(left, 1.0))
        return True

    def prove(self, key: str) -> bool:
        """Prove all layers that a snapshot offers; returns whether they are right."""
        snapshot, papers = self._store.snapshot(key), self._store.papers(key)
        paths = {file.path: self._store.files.path(file.id) for file in snapshot.files if file.id}
        proven = set(self._store.proven(key))
        for layer in offered(snapshot, papers):
            if layer.digest in proven:
                continue
            if not right(layer, paths, self._pace):
                self._refuse(snapshot, layer)
                return False
            proven.add(layer.digest)
            self._store.prove(key, proven)
            with self._changed:
                self._changed.notify_all()
                if self._closed:
                    return False
        return True

    def _pace(self, bytes_: int) -> None:
        self.bytes_read += bytes_
        if self._busy():
            with self._changed:
                while self._busy() and not self._waiting and not self._closed:
                    self._changed.wait(_PAUSE_SECONDS)

    def _refuse(self, snapshot: Snapshot, layer: Layer) -> None:
        bad = damaged(self._store, snapshot, lambda _bytes: None)
        if not self._store.has(snapshot.key):
            return
        if bad:  # it is the disk that lies
            self._store.quarantine(bad)
            _log.error("quarantined model=%s files=%s", snapshot.key, ",".join(sorted(bad)))
            return
        reason = f"layer {layer.digest} is not what the chunk index says of it"
        self._store.refuse(snapshot.digest, reason)
        _log.error("refused model=%s reference=%s: %s", snapshot.key, snapshot.reference, reason)

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._queue)
                if self._closed:
                    return
                key = self._queue.pop()
            try:
                if self._store.has(key):
                    self.prove(key)
            except (ModelpackError, OSError):  # evicted meanwhile, or the disk is in trouble
                _log.warning("layers not proven model=%s", key, exc_info=True)
            with self._changed:
                self._changed.notify_all()
