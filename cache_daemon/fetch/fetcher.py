"""From a resolved artifact to a snapshot in the store, by the engine of `modelpack`."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cache_daemon.api.values import Priority, Snapshot, StoredFile
from cache_daemon.fetch.admission import Admission, Candidate, admit_all
from cache_daemon.fetch.arriving import Arriving, Listener
from cache_daemon.fetch.failover import Failover
from cache_daemon.fetch.failover import Store as SiteStore
from cache_daemon.fetch.limit import Reader, Sources
from cache_daemon.fetch.request import Wanted
from cache_daemon.observe.spans import span
from cache_daemon.store.files import file_id
from cache_daemon.store.promises import Claim
from cache_daemon.store.snapshots import Papers
from cache_daemon.store.store import Store
from modelpack.checkout.indexed import IndexedCheckout, Moved
from modelpack.checkout.place import Staged
from modelpack.checkout.reuse import Local
from modelpack.checkout.share import Place
from modelpack.checkout.staging import Staging
from modelpack.checkout.whole import WholeCheckout, verify_blob
from modelpack.chunks.cut import CHUNK_SIZE, cut
from modelpack.chunks.table import TableCache, digest_chunks
from modelpack.spec import limits
from modelpack.spec.errors import IntegrityError, LimitExceeded, NotFound
from modelpack.spec.index import ChunkIndex, decode
from modelpack.spec.kinds import layer_plan
from modelpack.spec.progress import QUIET
from modelpack.spec.source import BlobSource
from modelpack.state.database import Database
from modelpack.state.digests import DigestCache
from modelpack.transfer.blob import read_blob
from modelpack.transfer.stop import Stop

_ALGORITHM = "blake3"


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches models into the store; `jobs` connections each, within the limits of `sources`.

    `stores` of the site are asked for blobs before the registry. `admit` has the last word before
    anything is shown.
    """

    store: Store
    jobs: int = 4
    admit: Admission = admit_all
    sources: Sources = field(default_factory=Sources)
    stores: Sequence[SiteStore] = ()

    def fetch(self, wanted: Wanted, listener: Listener, stop: Stop) -> Snapshot:
        """Bring the model here, verified and durable, or raise what was in the way.

        Interrupted at any instant, the next call continues. Raises NoSpace before a byte is
        fetched, Refused, and the error that `stop` was set with.
        """
        if self.store.has(wanted.key):
            return self.store.snapshot(wanted.key)
        repository = wanted.open(wanted.reference)
        try:
            source: BlobSource = repository
            if wanted.reference.registry:
                reader = Reader(stop, lambda: listener.priority is Priority.POD)
                source = self.sources.limited(repository, wanted.reference.registry, reader)
                source = Failover(self.stores, source) if self.stores else source
            run = _Fetch(wanted, self.store, source, listener, stop, self.jobs, self.admit)
            return run.indexed() if wanted.artifact.index else run.whole()
        finally:
            self.store.end(wanted.key)
            repository.close()


@dataclass(frozen=True, slots=True)
class _Fetch:
    wanted: Wanted
    store: Store
    source: BlobSource
    reporter: Listener
    stop: Stop
    jobs: int
    admit: Admission

    def indexed(self) -> Snapshot:
        wanted, index = self.wanted, self.wanted.artifact.index
        assert index is not None  # noqa: S101  # the caller asked
        started = time.monotonic()
        ids = {number: wanted.id_of(number) for number in wanted.files}
        self.store.begin(wanted.key, ids.values())
        here = self._in_domain()
        absent = [n for n in wanted.files if ids[n] not in here]
        files = tuple(
            StoredFile(index.files[n].path, ids[n], index.files[n].size) for n in wanted.files
        )
        known = sum(index.files[n].size for n in wanted.files if ids[n] in here)
        needed = sum(index.files[n].size for n in absent)
        claim = self._claim(known + needed)

        def reserve(lacking: int) -> None:
            with span("reserve", bytes=needed):
                self.store.reserve(wanted.key, needed, replace(claim, lacking=lacking))

        tables = TableCache(
            DigestCache(Database(None)), index.header.algorithm, index.header.chunk_size
        )
        checkout = IndexedCheckout(
            index, wanted.artifact.layers, tables, self.reporter, self.jobs, self.stop
        )
        area = self.store.partial(wanted.key)
        with Staging(area, wanted.artifact.digest, len(index)) as staging:
            self.reporter.arriving(Arriving(wanted, staging, here.keys(), self.store.files.path))
            try:
                find = self._find(index, here)
                moved = checkout.stage(absent, staging, self.source, find, reserve)
                self._check_unsigned(index, absent, staging)
            except IntegrityError:
                if not wanted.artifact.index_signed:
                    staging.discard()
                raise
            self.store.settle(wanted.key)
            moved = replace(moved, reused=moved.reused + known)
            snapshot = self._snapshot(files, moved, started)
            staged = {ids[number]: staging.path(number) for number in absent}
            papers = self._papers(index.encode())
            self.admit(Candidate(wanted, snapshot, papers, self._path_of(staged)))
            with span("publish"):
                self.store.publish(snapshot, staged, papers)
            staging.discard()
        return snapshot

    def whole(self) -> Snapshot:
        """Fetch what has no index: whole layers by SHA-256, unpacked."""
        wanted = self.wanted
        started = time.monotonic()
        layers = layer_plan(wanted.artifact.manifest)
        layers = [one for one in layers if one.form != "raw" or wanted.takes(one.path)]
        # A compressed layer grows; what it grows to is known, and checked, when it is unpacked.
        self.store.begin(wanted.key, ())
        size = sum(one.descriptor.size for one in layers)
        with span("reserve", bytes=2 * size):
            self.store.reserve(wanted.key, 2 * size, self._claim(size))
        checkout = WholeCheckout(layers, self.source, self.reporter, self.jobs, self.stop)
        area = self.store.partial(wanted.key)
        with Staging(area, wanted.artifact.digest, checkout.parts) as staging:
            moved, every = checkout.stage(staging)
            entries = {path: entry for path, entry in every.items() if wanted.takes(path)}
            self.store.settle(wanted.key)
            files = tuple(_stored(path, entry) for path, entry in sorted(entries.items()))
            staged = {one.id: entries[one.path].file for one in files if one.id}
            snapshot = self._snapshot(files, moved, started)
            papers = self._papers(b"")
            self.admit(Candidate(wanted, snapshot, papers, self._path_of(_present(staged))))
            with span("publish"):
                self.store.publish(snapshot, _present(staged), papers)
            staging.discard()
        return snapshot

    def _in_domain(self) -> dict[str, Snapshot]:
        """Return the files that may be linked without receiving them, each with a snapshot."""
        return {
            id_: snapshot
            for snapshot in self.store.snapshots()
            if snapshot.domain == self.wanted.domain
            for id_ in snapshot.ids
        }

    def _find(self, index: ChunkIndex, here: Mapping[str, Snapshot]) -> "_Neighbours":
        donors = {snapshot.key: snapshot for snapshot in here.values()}.values()
        # The latest first: its files are the most likely to have chunks at the same offsets, which
        # is what sharing blocks takes.
        latest = sorted(donors, key=lambda snapshot: snapshot.created, reverse=True)
        return _Neighbours(self.store, latest, index.header.algorithm)

    def _check_unsigned(self, index: ChunkIndex, files: list[int], staging: Staging) -> None:
        if self.wanted.artifact.index_signed:
            return
        for number in files:
            layer = self.wanted.artifact.layers[index.files[number].layer]
            verify_blob(staging.path(number), layer, self.source.name, QUIET)

    def _snapshot(self, files: tuple[StoredFile, ...], moved: Moved, started: float) -> Snapshot:
        wanted = self.wanted
        return Snapshot(
            key=wanted.key,
            reference=wanted.name,
            repository=wanted.reference.name,
            digest=str(wanted.artifact.digest),
            domain=wanted.domain,
            files=files,
            bytes_total=sum(file.size for file in files),
            bytes_fetched=moved.received,
            bytes_reused=moved.reused,
            bytes_cloned=moved.cloned,
            fetch_seconds=round(time.monotonic() - started, 3),
            created=round(time.time(), 3),
            namespace=wanted.namespace,
            phases={"resolving": wanted.seconds, **self.reporter.durations()},
        )

    def _claim(self, bytes_: int) -> Claim:
        prefetch = self.reporter.priority is not Priority.POD
        return Claim(bytes_, self.wanted.namespace, prefetch)

    def _papers(self, index: bytes) -> Papers:
        """Return what registry clients ask for besides layers; a config may be missing."""
        artifact = self.wanted.artifact
        try:
            config = read_blob(self.source, artifact.manifest.config, limits.CONFIG_BYTES)
        except (NotFound, LimitExceeded):
            config = b""
        return Papers(artifact.data, config, index)

    def _path_of(self, staged: Mapping[str, Path]) -> Callable[[str], Path]:
        return lambda id_: staged.get(id_) or self.store.files.path(id_)


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """Knows the chunks of other snapshots of the same domain without reading their files."""

    store: Store
    snapshots: list[Snapshot]
    algorithm: str

    def __call__(self, local: Local) -> None:
        for snapshot in self.snapshots:
            data = self.store.index(snapshot.key)
            if not data:
                continue
            index = decode(data)
            if index.header.algorithm != self.algorithm:
                continue
            ids = {file.path: file.id for file in snapshot.files}
            for file in index.files:
                if file.path in ids:
                    path = self.store.files.path(ids[file.path])
                    for chunk in index.chunks(file):
                        local.add(chunk.digest, Place(path, chunk.offset, chunk.length))


def _stored(path: str, entry: Staged) -> StoredFile:
    if entry.file is None:
        return StoredFile(path, "", 0, entry.link)
    size = entry.file.stat().st_size
    lengths = cut(size, None, CHUNK_SIZE)
    with entry.file.open("rb") as file:
        digests = digest_chunks(file.fileno(), lengths, _ALGORITHM)
    return StoredFile(path, file_id(_ALGORITHM, size, lengths, digests), size)


def _present(staged: Mapping[str, Path | None]) -> dict[str, Path]:
    return {id_: path for id_, path in staged.items() if path is not None}
