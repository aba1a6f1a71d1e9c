"""An OCI image layout on disk (image-spec v1.1, image-layout.md): a registry without a server."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from modelpack.spec import limits, media
from modelpack.spec.digest import Digest
from modelpack.spec.errors import (
    BadManifest,
    DiskError,
    IntegrityError,
    LimitExceeded,
    ModelpackError,
    NotFound,
    ProtocolViolation,
    Rejected,
)
from modelpack.spec.manifest import Descriptor, Index, Manifest, decode, encode
from modelpack.spec.progress import Progress
from modelpack.spec.source import Content

_REF_NAME: Final = "org.opencontainers.image.ref.name"
_MARKER: Final = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX_BYTES: Final = 64 * limits.MIB
_PARTIAL: Final = ".modelpack"  # beside blobs/, where no reader looks


class LayoutRepository:
    """A layout directory (a `spec.registry.Repository`). Processes may share it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = f"oci:{directory}"

    def close(self) -> None:
        """Nothing is held open."""

    def manifest(self, target: str) -> tuple[Descriptor, bytes]:
        """Read a manifest by tag or digest (see Repository)."""
        entries = self._entries()
        if ":" in target:
            found = next((e for e in entries if e.digest == target), None)
            digest = Digest.parse(target)
        else:
            found = next((e for e in entries if _tag(e) == target), None)
            if found is None:
                known = ", ".join(sorted(filter(None, map(_tag, entries)))[:10]) or "none"
                raise NotFound(f"{self.name}: no tag {target!r}; there are: {known}")
            digest = found.checked_digest
        path = self._blob_path(str(digest))
        with self._disk("read", path):
            if _size(path) > limits.MANIFEST_BYTES:
                raise LimitExceeded(f"{self.name}@{digest}: a manifest of {_size(path)} bytes")
            data = path.read_bytes()
        got = Digest.of(data, digest.algorithm)
        if got != digest:
            raise IntegrityError(
                f"manifest {digest}", expected=str(digest), got=str(got), source=self.name
            )
        media_type = found.media_type if found else _media_type(data)
        return Descriptor(media_type, str(digest), len(data)), data

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        """Store a manifest and name it in index.json (see Repository)."""
        manifest = decode(data, self.name)
        named = (
            [manifest.config, *manifest.layers]
            if isinstance(manifest, Manifest)
            else list(manifest.manifests)
        )
        for part in named:
            if self.stat_blob(part.digest) is None:
                raise Rejected(f"{self.name}: the manifest names {part.digest}, which is not here")
        digest = str(Digest.of(data))
        with self._locked():
            self._write(self._blob_path(digest), data)
            entry = Descriptor(
                media_type, digest, len(data),
                annotations={_REF_NAME: tag} if tag else None,
                artifact_type=manifest.artifact_type,
            )  # fmt: skip
            entries = [
                e for e in self._entries()
                if not (tag and _tag(e) == tag) and not (e.digest == digest and not _tag(e))
            ]  # fmt: skip
            if tag or all(e.digest != digest for e in entries):
                entries.append(entry)
            self._write_index(entries)
            with contextlib.suppress(OSError):  # others may still be at work there
                (self.directory / _PARTIAL).rmdir()
        return Descriptor(media_type, digest, len(data))

    def delete_manifest(self, target: str) -> None:
        """Remove a tag, or a manifest with all its tags, and blobs nobody names any more."""
        with self._locked():
            entries = self._entries()
            kept = [e for e in entries if target not in (_tag(e), e.digest)]
            if len(kept) == len(entries):
                raise NotFound(f"{self.name}: no {target!r}")
            self._write_index(kept)
            self._collect_garbage(kept)

    def tags(self) -> list[str]:
        """List all tags (see Repository)."""
        return sorted({tag for entry in self._entries() if (tag := _tag(entry))})

    def stat_blob(self, digest: str) -> int | None:
        """Return the size of a blob (see Repository)."""
        path = self._blob_path(digest)
        try:
            return _size(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskError(f"cannot look at {path}: {error.strerror}") from error

    def put_blob(self, content: Content, progress: Progress) -> None:
        """Store a blob (see Repository); an interrupted one is continued after being hashed."""
        blob = content.blob
        final = self._blob_path(blob.digest)
        with self._disk("write", final):
            self._create()
            if final.is_file() and _size(final) == blob.size:
                return
            partial = self.directory / _PARTIAL / blob.digest.replace(":", "-")
            with _exclusive(partial) as fd:
                if final.is_file() and _size(final) == blob.size:
                    partial.unlink()  # somebody else was faster
                    return
                self._fill(fd, content, progress)
                os.fsync(fd)
                final.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(final)
            _sync_directory(final.parent)

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:  # noqa: ARG002
        """Return False: a layout has no neighbours."""
        return False

    def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """List manifests whose subject is `digest` (see Repository)."""
        found = []
        for entry in self._entries():
            try:
                manifest = decode(self.manifest(entry.digest)[1], self.name)
            except ModelpackError:
                continue
            if isinstance(manifest, Manifest) and manifest.subject:
                kind = manifest.artifact_type or manifest.config.media_type
                if manifest.subject.digest == digest and artifact_type in ("", kind):
                    found.append(
                        Descriptor(
                            entry.media_type, entry.digest, entry.size,
                            annotations=manifest.annotations, artifact_type=kind,
                        )
                    )  # fmt: skip
        return list({entry.digest: entry for entry in found}.values())

    @contextmanager
    def open(self, blob: Descriptor, offset: int, length: int) -> Iterator["_FileRange"]:
        """Stream a range (see BlobSource)."""
        path = self._blob_path(blob.digest)
        with self._disk("read", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(fd).st_size
            if offset + length > size:
                raise ProtocolViolation(
                    f"{path}: has {size} bytes, {offset + length} are needed",
                    hint="the layout is damaged: copy it again",
                )
            yield _FileRange(fd, offset, length, path)
        finally:
            os.close(fd)

    def _fill(self, fd: int, content: Content, progress: Progress) -> None:
        blob = content.blob
        hasher = blob.checked_digest.hasher()
        offset = 0
        buffer = memoryview(bytearray(limits.MIB))
        if os.fstat(fd).st_size > blob.size:
            os.ftruncate(fd, 0)
        while got := os.preadv(fd, [buffer], offset):
            hasher.update(buffer[:got])
            offset += got
        progress.expect(-offset)  # an earlier run wrote these
        for part in content.read_from(offset):
            hasher.update(part)
            rest = memoryview(part)
            while rest:
                done = os.pwrite(fd, rest, offset)
                rest, offset = rest[done:], offset + done
            progress.advance(len(part))
        got_digest = hasher.hexdigest()
        if offset != blob.size or got_digest != blob.checked_digest.hex:
            os.ftruncate(fd, 0)
            raise IntegrityError(
                f"layer {blob.digest}", expected=f"{blob.size} bytes, {blob.digest}",
                got=f"{offset} bytes, {got_digest}", source="what was to be stored",
                hint="a file changed while it was read: run again",
            )  # fmt: skip

    def _entries(self) -> list[Descriptor]:
        path = self.directory / "index.json"
        try:
            if _size(path) > _INDEX_BYTES:
                raise LimitExceeded(f"{path}: {_size(path)} bytes; at most {_INDEX_BYTES}")
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(
                f"{self.name}: no OCI layout there", hint="a layout is a directory with index.json"
            ) from None
        except NotADirectoryError:
            raise NotFound(f"{self.name}: not a directory, so no OCI layout") from None
        except OSError as error:
            raise DiskError(f"cannot read {path}: {error.strerror}") from error
        try:
            entries = msgspec.json.decode(data, type=Index).manifests
            for entry in entries:
                Digest.parse(entry.digest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ModelpackError) as error:
            raise BadManifest(f"{path}: not the index of a layout: {error}") from None
        return list(entries)

    def _write_index(self, entries: list[Descriptor]) -> None:
        index = Index(media_type=media.OCI_INDEX, manifests=tuple(entries))
        self._write(self.directory / "index.json", encode(index))

    def _write(self, path: Path, data: bytes) -> None:
        """Replace a small file durably."""
        with self._disk("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.directory / _PARTIAL / f"small-{secrets.token_hex(8)}"
            with _exclusive(temporary) as fd:
                os.write(fd, data)
                os.fsync(fd)
                temporary.replace(path)
            _sync_directory(path.parent)

    def _create(self) -> None:
        with self._disk("create", self.directory):
            (self.directory / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        marker = self.directory / "oci-layout"
        if not marker.exists():
            self._write(marker, _MARKER)
        if not (self.directory / "index.json").exists():
            self._write_index([])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other writers of index.json out; readers see the old or the new one."""
        if not self.directory.exists():
            self._create()
        with self._disk("lock", self.directory):
            fd = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            self._create()
            yield
        finally:
            os.close(fd)

    def _collect_garbage(self, entries: list[Descriptor]) -> None:
        reachable: set[str] = set()
        waiting = [entry.digest for entry in entries]
        while waiting:
            digest = waiting.pop()
            if digest in reachable:
                continue
            reachable.add(digest)
            try:
                manifest = decode(self.manifest(digest)[1], self.name)
            except ModelpackError:
                continue
            if isinstance(manifest, Index):
                waiting += [entry.digest for entry in manifest.manifests]
            else:
                reachable.update(part.digest for part in (manifest.config, *manifest.layers))
        for path in (self.directory / "blobs").glob("*/*"):
            if f"{path.parent.name}:{path.name}" not in reachable:
                with self._disk("remove", path):
                    path.unlink()

    def _blob_path(self, digest: str) -> Path:
        checked = Digest.parse(digest)
        return self.directory / "blobs" / checked.algorithm / checked.hex

    @contextmanager
    def _disk(self, doing: str, path: Path) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"{self.name}: {path.name} is not there") from error
        except OSError as error:
            raise DiskError(
                f"cannot {doing} {path}: {error.strerror}",
                hint="check space, owner and mode of the layout; the same command continues",
            ) from error


class _FileRange:
    """Reads a range of a file through one reused buffer."""

    def __init__(self, fd: int, offset: int, length: int, path: Path) -> None:
        self._fd = fd
        self._offset = offset
        self._left = length
        self._path = path
        self._buffer = memoryview(bytearray(min(length, limits.MIB)))

    def read(self, size: int, /) -> memoryview:
        """Return the next bytes (see ByteStream)."""
        wanted = min(size, self._left, len(self._buffer))
        try:
            got = os.preadv(self._fd, [self._buffer[:wanted]], self._offset) if wanted else 0
        except OSError as error:
            raise DiskError(f"cannot read {self._path}: {error.strerror}") from error
        if got == 0 and wanted:
            raise ProtocolViolation(f"{self._path}: became shorter while it was read")
        self._offset += got
        self._left -= got
        return self._buffer[:got]


@contextmanager
def _exclusive(path: Path) -> Iterator[int]:
    """Open and lock a partial file; whoever comes second waits and opens what is there then."""
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # the directory was cleaned up meanwhile
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            # The holder before us has renamed it: that file is no longer the partial one.
            if os.path.samestat(os.fstat(fd), path.stat()):
                break
        except FileNotFoundError:
            pass
        os.close(fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    return path.stat().st_size


def _tag(entry: Descriptor) -> str:
    return (entry.annotations or {}).get(_REF_NAME, "")


def _media_type(data: bytes) -> str:
    found = decode(data, "manifest")
    default = media.OCI_INDEX if isinstance(found, Index) else media.OCI_MANIFEST
    return found.media_type or default


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
