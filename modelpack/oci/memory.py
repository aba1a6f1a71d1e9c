"""A registry in memory: the twin that tests and simulations use."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from modelpack.spec import limits
from modelpack.spec.digest import Digest
from modelpack.spec.errors import IntegrityError, NotFound, ProtocolViolation, Rejected
from modelpack.spec.manifest import Descriptor, Manifest, decode
from modelpack.spec.progress import Progress
from modelpack.spec.source import Content


@dataclass
class _Contents:
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    partial: dict[str, bytearray] = field(default_factory=dict)


class MemoryRegistry:
    """Repositories by name."""

    def __init__(self) -> None:
        self._contents: dict[str, _Contents] = {}
        self.lock = threading.RLock()

    def repository(self, name: str) -> "MemoryRepository":
        """Return a view of the repository `name`."""
        return MemoryRepository(self, name)

    def contents(self, name: str, *, create: bool = False) -> _Contents:
        """Return what a repository holds; raises NotFound if nothing was ever put there."""
        with self.lock:
            if create:
                return self._contents.setdefault(name, _Contents())
            if name not in self._contents:
                raise NotFound(f"{name}: no such repository")
            return self._contents[name]


class MemoryRepository:
    """One repository in memory (a `spec.registry.Repository`)."""

    def __init__(self, registry: MemoryRegistry, name: str) -> None:
        self.name = name
        self._registry = registry

    def close(self) -> None:
        """Nothing is held open."""

    def manifest(self, target: str) -> tuple[Descriptor, bytes]:
        """Return a manifest (see Repository)."""
        contents = self._registry.contents(self.name)
        digest = target if ":" in target else contents.tags.get(target, "")
        if digest not in contents.manifests:
            raise NotFound(f"{self.name}: no manifest {target}")
        media_type, data = contents.manifests[digest]
        return Descriptor(media_type, digest, len(data)), data

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        """Store a manifest (see Repository)."""
        manifest = decode(data, self.name)
        with self._registry.lock:
            contents = self._registry.contents(self.name, create=True)
            if isinstance(manifest, Manifest):
                missing = [
                    part.digest
                    for part in (manifest.config, *manifest.layers)
                    if part.digest not in contents.blobs
                ]
            else:
                missing = [
                    e.digest for e in manifest.manifests if e.digest not in contents.manifests
                ]
            if missing:
                raise Rejected(f"{self.name}: the manifest names {missing[0]}, which is not here")
            digest = str(Digest.of(data))
            contents.manifests[digest] = (media_type, data)
            if tag:
                contents.tags[tag] = digest
        return Descriptor(media_type, digest, len(data))

    def delete_manifest(self, target: str) -> None:
        """Remove a tag, or a manifest and its tags (see Repository)."""
        with self._registry.lock:
            contents = self._registry.contents(self.name)
            if contents.tags.pop(target, None) is not None:
                return
            if contents.manifests.pop(target, None) is None:
                raise NotFound(f"{self.name}: no manifest {target}")
            for tag in [tag for tag, digest in contents.tags.items() if digest == target]:
                del contents.tags[tag]

    def tags(self) -> list[str]:
        """List tags (see Repository)."""
        return sorted(self._registry.contents(self.name).tags)

    def stat_blob(self, digest: str) -> int | None:
        """Return the size of a blob (see Repository)."""
        data = self._registry.contents(self.name, create=True).blobs.get(digest)
        return None if data is None else len(data)

    def put_blob(self, content: Content, progress: Progress) -> None:
        """Store a blob, continuing an interrupted one (see Repository)."""
        blob = content.blob
        contents = self._registry.contents(self.name, create=True)
        if blob.digest in contents.blobs:
            return
        partial = contents.partial.setdefault(blob.digest, bytearray())
        for part in content.read_from(len(partial)):
            partial += part
            progress.advance(len(part))
        del contents.partial[blob.digest]
        data = bytes(partial)
        got = Digest.of(data, blob.checked_digest.algorithm)
        if got != blob.checked_digest or len(data) != blob.size:
            raise IntegrityError(
                f"layer {blob.digest}", expected=blob.digest, got=str(got), source="the content"
            )
        contents.blobs[blob.digest] = data

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:
        """Link a blob of a neighbour (see Repository)."""
        try:
            data = self._registry.contents(repository).blobs.get(blob.digest)
        except NotFound:
            return False
        if data is None:
            return False
        self._registry.contents(self.name, create=True).blobs[blob.digest] = data
        return True

    def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """List manifests with this subject (see Repository)."""
        found = []
        for own, (media_type, data) in self._registry.contents(self.name).manifests.items():
            manifest = decode(data, self.name)
            if isinstance(manifest, Manifest) and manifest.subject:
                kind = manifest.artifact_type or manifest.config.media_type
                if manifest.subject.digest == digest and artifact_type in ("", kind):
                    found.append(Descriptor(media_type, own, len(data), artifact_type=kind))
        return found

    @contextmanager
    def open(self, blob: Descriptor, offset: int, length: int) -> Iterator["_View"]:
        """Stream a range (see BlobSource)."""
        data = self._registry.contents(self.name).blobs.get(blob.digest)
        if data is None:
            raise NotFound(f"{self.name}: no blob {blob.digest}")
        if offset + length > len(data):
            raise ProtocolViolation(f"{self.name}: {blob.digest} has {len(data)} bytes")
        yield _View(memoryview(data)[offset : offset + length])


class _View:
    def __init__(self, data: memoryview) -> None:
        self._data = data

    def read(self, size: int, /) -> memoryview:
        """Return the next bytes (see ByteStream)."""
        part = self._data[: min(size, limits.MIB)]
        self._data = self._data[len(part) :]
        return part
