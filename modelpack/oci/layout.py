"""A repository on disk: an OCI image layout (image-spec v1.1, image-layout.md).

What is written here is read by skopeo, podman, umoci and every other reader of layouts. What is
ours alone lies in `.modelpack/` beside the files of the specification: locks and partial blobs. A
process that dies at any instant leaves a layout that is complete for everybody else, and the next
run continues.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from modelpack.disk.durable import sync
from modelpack.disk.errors import disk_errors
from modelpack.oci.checked import CheckedManifest, check_manifest
from modelpack.oci.layout_blobs import Blobs, FileStream
from modelpack.oci.layout_disk import DamagedLayout, make_directory, read_bounded, write_durably
from modelpack.oci.layout_graph import Node, lenient, parent_of, reached, strict, walk
from modelpack.oci.layout_index import LayoutIndex
from modelpack.oci.layout_lock import Beat, Lease, exclusive
from modelpack.oci.layout_upload import Uploads
from modelpack.spec import limits
from modelpack.spec.errors import ArtifactError, NotFound, RegistryError, Rejected
from modelpack.spec.manifest import Descriptor
from modelpack.spec.names import RESERVED_DIRECTORY
from modelpack.spec.progress import Progress
from modelpack.spec.source import Content

_VERSION: Final = "1.0.0"
_OURS: Final = frozenset({RESERVED_DIRECTORY, "blobs", "index.json", "oci-layout"})


class _Marker(msgspec.Struct, rename="camel"):
    image_layout_version: str


class LayoutRepository:
    """One layout directory (a `spec.registry.Repository`).

    The directory is created by the first put. Reading leaves no trace and needs no permission to
    write. Garbage is collected when something is removed: blobs that no listed manifest reaches,
    unless some process is just pushing with modelpack, or a listed manifest cannot be read. Other
    tools know no such courtesy: remove nothing while skopeo copies into the same layout.
    """

    def __init__(self, directory: Path) -> None:
        self.name = f"oci:{directory}"
        self._root = directory.absolute()
        private = self._root / RESERVED_DIRECTORY
        self._private = private
        self._blobs = Blobs(self._root, self.name)
        self._uploads = Uploads(private / "uploads", self.name)
        self._lease = Lease(private / "pushing")

    def close(self) -> None:
        """Let other processes collect what was not published."""
        self._lease.close()

    def manifest(self, target: str) -> tuple[Descriptor, bytes]:
        """Read a manifest (see Repository); by digest also one that only an index names."""
        index = self._index()
        found = self._find(index, target)
        if found is None:
            raise self._not_found(index, target)
        data = self._blobs.manifest(found)
        if data is None:
            raise NotFound(
                f"{self.name}: names the manifest {found.digest} but does not hold it",
                hint="the layout is incomplete: copy or push the artifact again",
            )
        return Descriptor(found.media_type, found.digest, found.size), data

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        """Store a manifest (see Repository)."""
        checked = check_manifest(data, media_type, tag, self.name)
        self._create()
        with exclusive(self._lock):
            index = self._index()
            self._require(index, checked)
            path = self._blobs.prepare(checked.descriptor.digest)
            write_durably(self._private / "manifest", path, data)
            self._store(index, index.put(checked.descriptor, tag))
        self._lease.settle(blob.digest for blob in checked.blobs)
        return checked.descriptor

    def delete_manifest(self, target: str) -> None:
        """Remove a manifest or a tag (see Repository), and the blobs that nobody needs any more.

        A manifest is gone with its last tag. One that an index names goes with the index only:
        Rejected.
        """
        self._index()
        make_directory(self._private)
        with exclusive(self._lock) as beat:
            index = self._index()
            descriptor = self._find(index, target)
            if descriptor is None:
                raise self._not_found(index, target)
            if ":" not in target:
                remaining = index.remove_tag(target)
            else:
                parent = parent_of(target, self._nodes(index))
                if parent is not None:
                    raise Rejected(
                        f"{self.name}@{target}: the index {parent[0].descriptor.digest} names it",
                        hint="remove that index first",
                    )
                remaining = index.remove(target)
            self._store(index, remaining)
            self._collect(remaining, beat)

    def tags(self) -> list[str]:
        """List all tags (see Repository)."""
        return self._index().tags()

    def stat_blob(self, digest: str) -> int | None:
        """Return the size of a blob (see Repository); until `close` it will not be collected."""
        size = self._blobs.size(digest)
        if size is not None:
            self._lease.hold(digest, create=False)
            size = self._blobs.size(digest)  # it may have gone just before
        return size

    def put_blob(self, content: Content, progress: Progress) -> None:
        """Store a blob (see Repository); one that is here already is not read."""
        blob = content.blob
        target = self._blobs.path(blob.digest)
        self._create()
        self._lease.hold(blob.digest, create=True)
        if self._blobs.size(blob.digest) == blob.size:
            progress.expect(-blob.size)
            return
        self._blobs.prepare(blob.digest)
        self._uploads.put(content, target, progress)

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:  # noqa: ARG002
        """Return False: a layout has no neighbours."""
        return False

    def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """List referrers (see Repository), those that only a fallback tag names included."""
        try:
            nodes = self._nodes(self._index())
        except NotFound:
            return []
        found = (node.as_referrer() for node in nodes if node.refers_to(digest))
        return [entry for entry in found if artifact_type in ("", entry.artifact_type)]

    def open(self, blob: Descriptor, offset: int, length: int) -> FileStream:
        """Stream a range (see BlobSource)."""
        return self._blobs.open(blob, offset, length)

    @property
    def _lock(self) -> Path:
        return self._private / "lock"

    def _index(self) -> LayoutIndex:
        """Read index.json. Raises NotFound, Rejected, DamagedLayout, LimitExceeded, DiskError."""
        marker = self._root / "oci-layout"
        data = read_bounded(marker, limits.KIB)
        if data is None:
            if _is_file(self._root):
                raise Rejected(
                    f"{self.name}: is a file; expected the directory of an OCI layout",
                    hint="unpack an archive first: mkdir DIR && tar -xf FILE -C DIR",
                )
            raise NotFound(
                f"{self.name}: no OCI layout is here (no oci-layout file)",
                hint="check the path; a push creates it",
            )
        try:
            version = msgspec.json.decode(data, type=_Marker).image_layout_version
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DamagedLayout(f"{marker}: {error}") from error
        if version != _VERSION:
            raise DamagedLayout(
                f"{marker}: version {version[:20]!r}; expected {_VERSION}", hint="update modelpack"
            )
        path = self._root / "index.json"
        data = read_bounded(path, limits.JSON_BODY_BYTES)
        if data is None:
            raise DamagedLayout(f"{path}: is missing")
        return LayoutIndex.parse(data, str(path))

    def _store(self, before: LayoutIndex, after: LayoutIndex) -> None:
        if after != before:
            write_durably(self._private / "index", self._root / "index.json", after.encode())

    def _create(self) -> None:
        """Make the directory a layout if it is none. Raises Rejected where that would litter."""
        marker = self._root / "oci-layout"
        if not _is_file(marker):
            with disk_errors("create", self._root):
                self._root.mkdir(parents=True, exist_ok=True)
                foreign = sorted({entry.name for entry in self._root.iterdir()} - _OURS)
                sync(self._root.parent)
            if foreign and not _is_file(marker):
                raise Rejected(
                    f"{self.name}: holds {foreign[0]!r} and is no OCI layout; nothing was written",
                    hint="choose an empty or a new directory",
                )
        make_directory(self._private)
        if _is_file(marker):
            return
        with exclusive(self._lock):
            # The marker comes last: where it is, everything else is.
            if not _is_file(marker):
                make_directory(self._root / "blobs")
                temporary = self._private / "index"
                if not (self._root / "index.json").exists():
                    empty = LayoutIndex.empty().encode()
                    write_durably(temporary, self._root / "index.json", empty)
                write_durably(temporary, marker, msgspec.json.encode(_Marker(_VERSION)))

    def _find(self, index: LayoutIndex, target: str) -> Descriptor | None:
        if ":" not in target:
            return index.tagged(target)
        self._blobs.path(target)  # raises Rejected for what is no digest
        listed = index.listed(target)
        if listed is not None:
            return listed
        parent = parent_of(target, self._nodes(index))
        return parent[1] if parent else None

    def _nodes(self, index: LayoutIndex) -> Iterable[Node]:
        return walk(_roots(index), lenient(strict(self._blobs.manifest)))

    def _require(self, index: LayoutIndex, checked: CheckedManifest) -> None:
        """Check that everything is here that a manifest names."""
        for child in checked.manifests:
            if self._find(index, child.digest) is None:
                raise checked.lacks(child)
        for blob in (*checked.blobs, *checked.manifests):
            size = self._blobs.size(blob.digest)
            if size is None:
                raise checked.lacks(blob)
            if size != blob.size:
                raise DamagedLayout(
                    f"{self._blobs.path(blob.digest)}: {size} bytes; expected {blob.size}",
                    hint="delete this file, then push again",
                )

    def _not_found(self, index: LayoutIndex, target: str) -> NotFound:
        separator = "@" if ":" in target else ":"
        tags = index.tags()
        there = tags or [f"@{root.digest}" for root in _roots(index)]
        hint = f"there are: {', '.join(there[:10])}" if there else "the layout is empty"
        return NotFound(f"{self.name}{separator}{target}: no such manifest", hint=hint)

    def _collect(self, index: LayoutIndex, beat: Beat) -> None:
        with self._lease.nobody() as beat_too:
            if beat_too is None:
                return
            try:
                kept = reached(_roots(index), strict(self._blobs.manifest))
            except (RegistryError, ArtifactError):
                return  # what it names cannot be known
            for digest, path in self._blobs.all():
                if digest not in kept:
                    with disk_errors("remove", path):
                        path.unlink(missing_ok=True)
                    beat()
                    beat_too()
            self._uploads.expire()


def _roots(index: LayoutIndex) -> list[Descriptor]:
    return [entry.descriptor for entry in index.entries]


def _is_file(path: Path) -> bool:
    with disk_errors("look at", path):
        return path.is_file()
