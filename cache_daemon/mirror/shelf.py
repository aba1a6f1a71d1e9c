"""The manifests and blobs that this node can show from its snapshots."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_daemon.api.values import Snapshot, domain_of
from cache_daemon.mirror.asked import Asked
from cache_daemon.store.layers import Layer
from cache_daemon.store.proof import Prover, companions, offered
from cache_daemon.store.store import Store
from modelpack.spec.errors import ModelpackError
from modelpack.spec.manifest import Manifest, decode
from modelpack.spec.reference import Reference

_DECODED: Final = 32  # snapshots whose layers are kept laid out in memory


@dataclass(frozen=True, slots=True)
class Found:
    """A blob and where the files are that it is made of, by path in the model."""

    key: str
    layer: Layer
    paths: dict[str, Path]


@dataclass(frozen=True, slots=True)
class _Contents:
    layers: dict[str, Layer]
    needs_proof: frozenset[str]
    paths: dict[str, Path]


class Shelf:
    """Looks blobs up. Thread-safe."""

    def __init__(self, store: Store, prover: Prover) -> None:
        self._store = store
        self._prover = prover
        self._lock = threading.Lock()
        self._named: dict[str, frozenset[str]] = {}
        self._contents: OrderedDict[str, _Contents] = OrderedDict()

    def manifest(self, asked: Asked) -> tuple[str, bytes] | None:
        """Return media type and bytes of a manifest, asked for by digest in its own repository."""
        for snapshot in self._store.snapshots():
            if snapshot.digest == asked.target and snapshot.repository == asked.name:
                data = self._store.papers(snapshot.key).manifest
                manifest = decode(data, asked.name) if data else None
                if isinstance(manifest, Manifest):
                    return manifest.media_type, data
        return None

    def blob(self, asked: Asked, seconds: float) -> Found | None:
        """Return a blob of the reuse domain, its SHA-256 proven; waits so long for the proof."""
        domain = domain_of(Reference(registry=asked.registry, repository=asked.repository))
        for snapshot in self._store.snapshots():
            if snapshot.domain != domain or asked.target not in self._names(snapshot):
                continue
            contents = self._laid_out(snapshot)
            layer = contents.layers.get(asked.target)
            if layer is None:
                continue
            if layer.digest not in contents.needs_proof or self._prover.wait(
                snapshot.key, layer.digest, seconds
            ):
                return Found(snapshot.key, layer, contents.paths)
        return None

    def _names(self, snapshot: Snapshot) -> frozenset[str]:
        with self._lock:
            known = self._named.get(snapshot.key)
        if known is None:
            known = self._read_names(snapshot)
            with self._lock:
                stored = {one.key for one in self._store.snapshots()}
                self._named = {k: v for k, v in self._named.items() if k in stored}
                self._named[snapshot.key] = known
        return known

    def _read_names(self, snapshot: Snapshot) -> frozenset[str]:
        data = self._store.papers(snapshot.key).manifest
        try:
            manifest = decode(data, snapshot.reference) if data else None
        except ModelpackError:
            return frozenset()
        if not isinstance(manifest, Manifest):
            return frozenset()
        return frozenset(one.digest for one in (manifest.config, *manifest.layers))

    def _laid_out(self, snapshot: Snapshot) -> _Contents:
        with self._lock:
            if snapshot.key in self._contents:
                self._contents.move_to_end(snapshot.key)
                return self._contents[snapshot.key]
        papers = self._store.papers(snapshot.key)
        layers = offered(snapshot, papers)
        contents = _Contents(
            {one.digest: one for one in (*layers, *companions(papers))},
            frozenset(one.digest for one in layers),
            {file.path: self._store.files.path(file.id) for file in snapshot.files if file.id},
        )
        with self._lock:
            self._contents[snapshot.key] = contents
            while len(self._contents) > _DECODED:
                self._contents.popitem(last=False)
        return contents
