"""One file of an indexed artifact, read where it lies: headers without a download."""

import io
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, BinaryIO, cast

from modelpack.codec.zstd import FrameReader
from modelpack.spec.digest import CHUNK_HASHERS
from modelpack.spec.errors import IntegrityError
from modelpack.spec.index import Chunk, ChunkIndex, IndexedFile
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import Descriptor
from modelpack.spec.source import BlobSource
from modelpack.transfer.blob import read_range

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def open_file(
    source: BlobSource, index: ChunkIndex, file: IndexedFile, layer: Descriptor
) -> BinaryIO:
    """Open a file of an artifact for buffered reading; nothing is fetched before a read."""
    raw = ArtifactFile(source, index, file, layer)
    return cast("BinaryIO", io.BufferedReader(raw, MIB))


class ArtifactFile(io.RawIOBase):
    """A seekable, read-only file whose every byte was verified by its chunk's digest.

    One chunk is kept in memory. `read` raises IntegrityError and what the source raises.
    """

    def __init__(
        self, source: BlobSource, index: ChunkIndex, file: IndexedFile, layer: Descriptor
    ) -> None:
        super().__init__()
        self._source = source
        self._index = index
        self._layer = layer
        self._size = file.size
        self._chunks = list(index.chunks(file))
        self._starts = list(accumulate((chunk.length for chunk in self._chunks), initial=0))
        self._position = 0
        self._held: tuple[int, bytes] = (-1, b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position; nothing is fetched."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Read at most to the end of the current chunk."""
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not view:
            return 0
        number = bisect_right(self._starts, self._position) - 1
        data = self._chunk(number)
        at = self._position - self._starts[number]
        part = data[at : at + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _chunk(self, number: int) -> bytes:
        if self._held[0] != number:
            self._held = (number, self._fetch(self._chunks[number]))
        return self._held[1]

    def _fetch(self, chunk: Chunk) -> bytes:
        data = read_range(self._source, self._layer, chunk.stored_offset, chunk.stored_length)
        what = f"chunk {chunk.number} (layer {self._layer.digest})"
        coding = self._index.coding
        if coding.codec:
            data = FrameReader().data(data, chunk.length, what, self._source.name)
        hasher = CHUNK_HASHERS[coding.algorithm]()
        hasher.update(data)
        if hasher.digest() != chunk.digest:
            raise IntegrityError(
                what, expected=chunk.digest.hex(), got=hasher.hexdigest(), source=self._source.name
            )
        return data
