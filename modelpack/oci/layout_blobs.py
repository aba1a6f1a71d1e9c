"""blobs/ of a layout: `blobs/<algorithm>/<hex>`, read where it lies."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from modelpack.disk.errors import disk_errors
from modelpack.oci.layout_disk import DamagedLayout, make_directory, open_regular, read_bounded
from modelpack.spec import limits
from modelpack.spec.digest import Digest
from modelpack.spec.errors import BadReference, NotFound, ProtocolViolation, Rejected
from modelpack.spec.manifest import Descriptor

# image-spec, descriptor.md, "Registered Algorithms"; other readers know no other.
_HEX: Final = {"sha256": re.compile(r"[0-9a-f]{64}"), "sha512": re.compile(r"[0-9a-f]{128}")}


class Blobs:
    """The files under blobs/. Nothing is kept open, so there is nothing to close."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root / "blobs"
        self._name = name

    def path(self, digest: str) -> Path:
        """Return where a blob is, or would be. Raises Rejected, DamagedLayout."""
        try:
            parsed = Digest.parse(digest)
        except BadReference as error:
            raise Rejected(f"{self._name}: {error}") from error
        if parsed.algorithm not in _HEX:
            raise Rejected(f"{self._name}: {digest}: layouts hold sha256 and sha512 only")
        directory = self._root / parsed.algorithm
        for part in (self._root, directory):
            with disk_errors("look at", part):
                linked = part.is_symlink()
            if linked:  # it would have us read, and write, wherever a hostile layout points
                raise DamagedLayout(
                    f"{part}: is a symbolic link; expected a directory",
                    hint="copy the layout with `cp -rL` first",
                )
        return directory / parsed.hex

    def prepare(self, digest: str) -> Path:
        """Create the directory of a blob; returns the blob's path. Raises DiskError."""
        path = self.path(digest)
        make_directory(self._root)
        make_directory(path.parent)
        return path

    def size(self, digest: str) -> int | None:
        """Return the size of a blob, or None. Raises DamagedLayout, DiskError."""
        path = self.path(digest)
        with disk_errors("look at", path):
            try:
                status = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        if not stat.S_ISREG(status.st_mode):
            raise DamagedLayout(f"{path}: is not a regular file")
        return status.st_size

    def manifest(self, descriptor: Descriptor) -> bytes | None:
        """Read a manifest and check it against its descriptor; None if it is not here.

        Raises DamagedLayout, LimitExceeded, DiskError.
        """
        path = self.path(descriptor.digest)
        data = read_bounded(path, limits.MANIFEST_BYTES)
        if data is None:
            return None
        digest = Digest.parse(descriptor.digest)
        if len(data) != descriptor.size or Digest.of(data, digest.algorithm) != digest:
            raise DamagedLayout(
                f"{path}: {len(data)} bytes with another digest; expected {descriptor.size} bytes"
            )
        return data

    def open(self, blob: Descriptor, offset: int, length: int) -> "FileStream":
        """Stream a range (see BlobSource). Raises NotFound, DamagedLayout, DiskError."""
        path = self.path(blob.digest)
        opened = open_regular(path)
        if opened is None:
            raise NotFound(
                f"{self._name}@{blob.digest}: the layout does not have this blob",
                hint="the artifact is incomplete; copy or push it again",
            )
        fd, size = opened
        stream = FileStream(fd, offset, length, path)
        if size != blob.size:
            stream.close()
            raise DamagedLayout(f"{path}: {size} bytes; expected {blob.size}")
        if not 0 <= offset < offset + length <= size:
            stream.close()
            raise ProtocolViolation(f"{path}: has no bytes {offset} to {offset + length - 1}")
        return stream

    def all(self) -> Iterator[tuple[str, Path]]:
        """Yield (digest, path) of every blob file."""
        for algorithm, pattern in _HEX.items():
            directory = self._root / algorithm
            if directory.is_symlink() or not directory.is_dir():
                continue
            with disk_errors("list", directory), os.scandir(directory) as entries:
                names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
            for name in names:
                if pattern.fullmatch(name):
                    yield f"{algorithm}:{name}", directory / name


class FileStream:
    """A range of a file (a `spec.source.ByteStream`). Owns the descriptor."""

    def __init__(self, fd: int, offset: int, length: int, path: Path) -> None:
        self._fd = fd
        self._offset = offset
        self._left = length
        self._path = path
        self._buffer = memoryview(bytearray(max(0, min(length, limits.MIB))))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def read(self, size: int, /) -> memoryview:
        """Return the next bytes; the view is overwritten by the next call (see ByteStream)."""
        wanted = min(size, self._left, len(self._buffer))
        if not wanted:
            return self._buffer[:0]
        with disk_errors("read", self._path):
            count = os.preadv(self._fd, [self._buffer[:wanted]], self._offset)
        if not count:
            raise DamagedLayout(f"{self._path}: ended {self._left} bytes early")
        self._offset += count
        self._left -= count
        return self._buffer[:count]
