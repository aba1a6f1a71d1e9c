"""One pass over the bytes of a layer: its SHA-256 and the digests of all its chunks."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from modelpack.chunks.table import ChunkTable, TableCache
from modelpack.codec.zstd import LEVEL, FrameWriter
from modelpack.pack.origin import Origin
from modelpack.pack.plan import PlannedLayer
from modelpack.spec.digest import CHUNK_HASHERS, Hasher
from modelpack.spec.errors import BadSource
from modelpack.spec.progress import Progress
from modelpack.spec.source import ByteStream
from modelpack.state.digests import DigestCache, fingerprint, now

_RECORD_VERSION: Final = b"layer 1"


class LayerDigests(msgspec.Struct, frozen=True):
    """What a layer is, once read.

    `stored` are the stored lengths of all chunks and `literals` those of the frames between them;
    both empty unless compressed.
    """

    digest: str  # of the stored bytes
    size: int
    diff_id: str  # of the tar
    chunks: tuple[bytes, ...]  # digests of each file's chunks, concatenated
    stored: tuple[int, ...] = ()
    literals: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Digester:
    """Digests layers, or remembers them."""

    origin: Origin
    tables: TableCache
    cache: DigestCache
    codec: str = ""

    def digests(self, layer: PlannedLayer, progress: Progress) -> LayerDigests:
        """Return the digests of a layer; raises BadSource if a file changes while it is read."""
        key = self._key(layer)
        known = self._recall(key)
        if known is not None:
            progress.advance(sum(file.size for file in layer.files))
            return known
        read_at = now()
        result = (self._packed if self.codec else self._plain)(layer, progress)
        for file in layer.files:
            self.origin.check(file)
        if all(file.key.settled(read_at) for file in layer.files):
            self.cache.put("layers", key, msgspec.msgpack.encode(result))
        for file, lengths, digests in zip(layer.files, layer.cuts, result.chunks, strict=True):
            # Tables by file help a later pull into, or reuse from, this directory.
            self.tables.remember(file.key, file.path, ChunkTable(lengths, digests), read_at)
        return result

    def _plain(self, layer: PlannedLayer, progress: Progress) -> LayerDigests:
        whole = hashlib.sha256()
        chunks = []
        size = 0
        for number, literal in enumerate(layer.literals):
            whole.update(literal)
            size += len(literal)
            if number < len(layer.files):
                chunks.append(b"".join(self._file(layer, number, whole, progress)))
                size += layer.files[number].size
        digest = f"sha256:{whole.hexdigest()}"
        return LayerDigests(digest, size, digest, tuple(chunks))

    def _file(
        self, layer: PlannedLayer, number: int, whole: Hasher, progress: Progress
    ) -> Iterator[bytes]:
        if not layer.files[number].size:
            return
        new = CHUNK_HASHERS[self.tables.algorithm]
        with self.origin.stream(layer.files[number], 0) as stream:
            for length in layer.cuts[number]:
                hasher = new()
                left = length
                while left:
                    data = _read(stream, left)
                    # Both while the slice is in the processor's cache.
                    hasher.update(data)
                    whole.update(data)
                    left -= len(data)
                progress.advance(length)
                yield hasher.digest()

    def _packed(self, layer: PlannedLayer, progress: Progress) -> LayerDigests:
        whole, diff = hashlib.sha256(), hashlib.sha256()
        writer = FrameWriter()
        chunks: list[bytes] = []
        stored: list[int] = []
        literals: list[int] = []
        for number, literal in enumerate(layer.literals):
            frame = writer.frame(literal)
            whole.update(frame)
            diff.update(literal)
            literals.append(len(frame))
            if number < len(layer.files):
                digests = b""
                for data in chunk_bytes(self.origin, layer, number):
                    hasher = CHUNK_HASHERS[self.tables.algorithm]()
                    hasher.update(data)
                    digests += hasher.digest()
                    frame = writer.frame(data)
                    whole.update(frame)
                    diff.update(data)
                    stored.append(len(frame))
                    progress.advance(len(data))
                chunks.append(digests)
        return LayerDigests(
            f"sha256:{whole.hexdigest()}", sum(stored) + sum(literals),
            f"sha256:{diff.hexdigest()}", tuple(chunks), tuple(stored), tuple(literals),
        )  # fmt: skip

    def _recall(self, key: bytes) -> LayerDigests | None:
        record = self.cache.get("layers", key)
        if record is None:
            return None
        try:
            return msgspec.msgpack.decode(record, type=LayerDigests)
        except msgspec.DecodeError:
            return None

    def _key(self, layer: PlannedLayer) -> bytes:
        coding = f"{self.tables.algorithm} {self.codec} {zstd_version() if self.codec else ''}"
        parts = [_RECORD_VERSION, coding.encode(), *layer.literals]
        for file, lengths in zip(layer.files, layer.cuts, strict=True):
            parts += [file.key.packed(), lengths.tobytes()]
        return fingerprint(*parts)


def chunk_bytes(
    origin: Origin, layer: PlannedLayer, number: int, first: int = 0
) -> Iterator[bytearray]:
    """Yield the chunks of file `number` of a layer, from chunk `first` on, each as a whole."""
    lengths = layer.cuts[number]
    if first >= len(lengths):
        return
    with origin.stream(layer.files[number], sum(lengths[:first])) as stream:
        for length in lengths[first:]:
            data = bytearray()
            while len(data) < length:
                data += _read(stream, length - len(data))
            yield data


def zstd_version() -> str:
    """Name what decides the bytes of a compressed layer, besides its input."""
    import zstandard

    return f"{'.'.join(map(str, zstandard.ZSTD_VERSION))} level {LEVEL}"


def _read(stream: ByteStream, wanted: int) -> bytes | memoryview:
    data = stream.read(wanted)
    if not data:
        raise BadSource("a file became shorter while it was being packed", hint="run it again")
    return data
