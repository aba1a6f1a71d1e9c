"""A registry in memory: what tests and examples push to, and the model of what the others do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from modelpack.oci.checked import CheckedManifest, check_manifest
from modelpack.spec import limits
from modelpack.spec.digest import Digest
from modelpack.spec.errors import (
    BadReference,
    BadSource,
    IntegrityError,
    NotFound,
    ProtocolViolation,
    Rejected,
)
from modelpack.spec.manifest import Descriptor, Index, Manifest, decode
from modelpack.spec.progress import Progress
from modelpack.spec.source import Content


@dataclass(slots=True)
class _Shelf:
    """One repository. `listed` are manifests that stand for themselves, not only in an index."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    partial: dict[str, bytearray] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    listed: dict[str, Descriptor] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def known(self) -> dict[str, Descriptor]:
        """Return the listed manifests and those that indexes name, as they are described there."""
        found = dict(self.listed)
        waiting = list(found)
        while waiting:
            for child in self.children(waiting.pop()):
                if child.digest not in found:
                    found[child.digest] = child
                    waiting.append(child.digest)
        return found

    def children(self, digest: str) -> tuple[Descriptor, ...]:
        """Return what an index names; nothing for other manifests."""
        if digest not in self.manifests:
            return ()
        manifest = decode(self.manifests[digest], digest)
        return manifest.manifests if isinstance(manifest, Index) else ()


class MemoryRegistry:
    """Several repositories, so that blobs can be mounted. Thread-safe."""

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}
        self._lock = threading.RLock()

    def repository(self, name: str) -> "MemoryRepository":
        """Open a repository; it exists once something is put into it."""
        return MemoryRepository(self, name)

    @contextmanager
    def shelf(self, name: str, *, create: bool = False) -> Iterator[_Shelf]:
        """Work on one repository while nobody else does. Raises NotFound."""
        with self._lock:
            if create:
                self._shelves.setdefault(name, _Shelf())
            if name not in self._shelves:
                raise NotFound(f"{name}: no such repository", hint="check the name")
            yield self._shelves[name]


class MemoryRepository:
    """One repository (a `spec.registry.Repository`).

    It differs from a layout only in that blobs stay when nothing names them any more.
    """

    def __init__(self, registry: MemoryRegistry, name: str) -> None:
        self.name = name
        self._registry = registry

    def close(self) -> None:
        """Do nothing: there are no connections."""

    def manifest(self, target: str) -> tuple[Descriptor, bytes]:
        """Return a manifest (see Repository)."""
        with self._registry.shelf(self.name) as shelf:
            descriptor = self._find(shelf, target)
            return descriptor, shelf.manifests[descriptor.digest]

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        """Store a manifest (see Repository)."""
        checked = check_manifest(data, media_type, tag, self.name)
        descriptor = checked.descriptor
        with self._registry.shelf(self.name, create=True) as shelf:
            self._require(shelf, checked)
            shelf.manifests[descriptor.digest] = bytes(data)
            shelf.listed.setdefault(descriptor.digest, descriptor)
            if tag:
                shelf.tags[tag] = descriptor.digest
        return descriptor

    def delete_manifest(self, target: str) -> None:
        """Remove a manifest or a tag (see Repository).

        A manifest is gone with its last tag. One that an index names goes with the index only:
        Rejected.
        """
        with self._registry.shelf(self.name) as shelf:
            digest = self._find(shelf, target).digest
            if ":" not in target:
                del shelf.tags[target]
            elif any(digest == child.digest for d in shelf.known() for child in shelf.children(d)):
                raise Rejected(
                    f"{self.name}@{target}: an index names it", hint="remove that index first"
                )
            else:
                shelf.tags = {tag: d for tag, d in shelf.tags.items() if d != digest}
            if digest not in shelf.tags.values():
                shelf.listed.pop(digest, None)
            known = shelf.known()
            shelf.manifests = {d: data for d, data in shelf.manifests.items() if d in known}

    def tags(self) -> list[str]:
        """List all tags (see Repository)."""
        with self._registry.shelf(self.name) as shelf:
            return sorted(shelf.tags)

    def stat_blob(self, digest: str) -> int | None:
        """Return the size of a blob (see Repository)."""
        _checked(digest, self.name)
        try:
            with self._registry.shelf(self.name) as shelf:
                data = shelf.blobs.get(digest)
        except NotFound:
            return None
        return None if data is None else len(data)

    def put_blob(self, content: Content, progress: Progress) -> None:
        """Store a blob (see Repository); one that is here already is not read."""
        blob = content.blob
        _checked(blob.digest, self.name)
        with self._registry.shelf(self.name, create=True) as shelf:
            if blob.digest in shelf.blobs:
                progress.expect(-blob.size)
                return
            # Whoever comes meanwhile starts anew: nobody waits for another thread's source.
            received = shelf.partial.pop(blob.digest, bytearray())
        progress.expect(-len(received))
        try:
            for part in content.read_from(len(received)):
                received += part
                progress.advance(len(part))
                if len(received) > blob.size:
                    break
            self._verify(blob, received)
        except (BadSource, IntegrityError):
            raise
        except BaseException:
            with self._registry.shelf(self.name) as shelf:
                shelf.partial[blob.digest] = received
            raise
        with self._registry.shelf(self.name) as shelf:
            shelf.blobs[blob.digest] = bytes(received)

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:
        """Share a blob with a neighbour of the same registry (see Repository)."""
        _checked(blob.digest, self.name)
        try:
            with self._registry.shelf(repository) as neighbour:
                data = neighbour.blobs.get(blob.digest)
        except NotFound:
            return False
        if data is None:
            return False
        with self._registry.shelf(self.name, create=True) as shelf:
            shelf.blobs[blob.digest] = data
        return True

    def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """List referrers (see Repository)."""
        try:
            with self._registry.shelf(self.name) as shelf:
                known = [(d, shelf.manifests[d.digest]) for d in shelf.known().values()]
        except NotFound:
            return []
        found = [
            Descriptor(
                descriptor.media_type, descriptor.digest, descriptor.size,
                annotations=manifest.annotations,
                artifact_type=manifest.artifact_type or manifest.config.media_type,
            )
            for descriptor, data in known
            if isinstance(manifest := decode(data, self.name), Manifest)
            and manifest.subject is not None
            and manifest.subject.digest == digest
        ]  # fmt: skip
        return [entry for entry in found if artifact_type in ("", entry.artifact_type)]

    @contextmanager
    def open(self, blob: Descriptor, offset: int, length: int) -> Iterator["_Stream"]:
        """Stream a range (see BlobSource)."""
        what = f"{self.name}@{blob.digest}"
        _checked(blob.digest, self.name)
        with self._registry.shelf(self.name) as shelf:
            data = shelf.blobs.get(blob.digest)
        if data is None:
            raise NotFound(f"{what}: no such blob", hint="the artifact is incomplete")
        if len(data) != blob.size or not 0 <= offset < offset + length <= len(data):
            raise ProtocolViolation(
                f"{what}: {len(data)} bytes; asked for {offset} to {offset + length - 1}"
            )
        yield _Stream(memoryview(data)[offset : offset + length])

    def _find(self, shelf: _Shelf, target: str) -> Descriptor:
        if ":" in target:
            _checked(target, self.name)
        digest = target if ":" in target else shelf.tags.get(target, "")
        found = shelf.known().get(digest)
        if found is None or digest not in shelf.manifests:
            raise NotFound(f"{self.name}: no manifest {target}", hint="check the tag")
        return Descriptor(found.media_type, found.digest, found.size)

    def _require(self, shelf: _Shelf, checked: CheckedManifest) -> None:
        known = shelf.known()
        for child in checked.manifests:
            if child.digest not in known or child.digest not in shelf.manifests:
                raise checked.lacks(child)
        for blob in checked.blobs:
            if len(shelf.blobs.get(blob.digest, b"")) != blob.size or (
                blob.digest not in shelf.blobs
            ):
                raise checked.lacks(blob)

    def _verify(self, blob: Descriptor, received: bytearray) -> None:
        digest = blob.checked_digest
        got = Digest.of(memoryview(received), digest.algorithm)
        if len(received) != blob.size or got != digest:
            raise IntegrityError(
                f"blob {blob.digest}", expected=f"{blob.size} bytes with this digest",
                got=f"{len(received)} bytes with {got}", source=f"what {self.name} was given",
                hint="a file changed while it was read, or the source is damaged: run again",
            )  # fmt: skip


class _Stream:
    """Bytes that are in memory (a `spec.source.ByteStream`)."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def read(self, size: int, /) -> memoryview:
        """Return the next bytes, at most 1 MiB."""
        count = min(size, limits.MIB)
        part, self._data = self._data[:count], self._data[count:]
        return part


def _checked(digest: str, where: str) -> None:
    try:
        Digest.parse(digest)
    except BadReference as error:
        raise Rejected(f"{where}: {error}") from error
