"""The chunk index: which chunks make up which file, and where they lie in which layer.

Binary form, version 1 (docs/design/artifact.md, "Chunk index"), all integers little-endian:

    0    8   magic "mpkindex"
    8    4   version
    12   4   length H of the header
    16   H   header, JSON: Header below
         p   zeros up to a multiple of 8
         4n  length of each chunk
         32n digest of each chunk
         4n  stored length of each chunk, only if the header names a codec

Chunks are listed in the order of layers, of files in them, of offsets in those, and cover every
payload exactly once, so that no offset needs to be written down.
"""

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import msgspec

from modelpack.spec import limits, tarrule
from modelpack.spec.digest import CHUNK_HASHERS, Digest
from modelpack.spec.errors import BadIndex, BadReference, HostilePath, LimitExceeded
from modelpack.spec.names import RESERVED_DIRECTORY
from modelpack.spec.paths import check_tree, checked

MAGIC: Final = b"mpkindex"
VERSION: Final = 1
DIGEST_BYTES: Final = 32
_PREFIX: Final = struct.Struct("<8sII")


class FileEntry(msgspec.Struct, frozen=True, array_like=False):
    """One file: its path, its size in bytes, how many chunks it has."""

    path: str
    size: int
    chunks: int


class LayerEntry(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One layer of the manifest, in the manifest's order.

    `form` is "tar" (payloads framed by spec.tarrule) or "raw" (one file and nothing else). In a
    compressed layer `literals` are the stored lengths of the frames that hold the tar bytes before
    each payload and after the last, and `diff_id` is the digest of the tar.
    """

    digest: str
    size: int
    files: tuple[FileEntry, ...]
    form: str = "tar"
    diff_id: str = ""
    literals: tuple[int, ...] = ()


class Header(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Everything but the table of chunks."""

    algorithm: str
    chunk_size: int
    layers: tuple[LayerEntry, ...]
    codec: str = ""


@dataclass(frozen=True, slots=True)
class Coding:
    """How chunks are digested, cut and stored."""

    algorithm: str = "blake3"
    chunk_size: int = 4 * limits.MIB
    codec: str = ""


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file and where its chunks are. `offset` is that of its first stored byte in the layer."""

    path: str
    size: int
    layer: int
    offset: int
    first: int  # number of its first chunk
    chunks: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of one file. Offsets and lengths in bytes; `stored_*` are about the layer."""

    number: int
    digest: bytes
    offset: int
    length: int
    stored_offset: int
    stored_length: int


class ChunkIndex:
    """A decoded, consistent index."""

    def __init__(
        self, header: Header, lengths: Sequence[int], stored: Sequence[int], digests: memoryview
    ) -> None:
        """Lay out files; raises BadIndex, HostilePath or LimitExceeded on any contradiction."""
        self.header = header
        self.lengths = lengths
        self.stored = stored
        self._digests = digests
        self.files: tuple[IndexedFile, ...] = tuple(_lay_out(header, lengths, stored))

    @property
    def coding(self) -> Coding:
        """How its chunks are digested, cut and stored."""
        return Coding(self.header.algorithm, self.header.chunk_size, self.header.codec)

    def __len__(self) -> int:
        return len(self.lengths)

    def digest(self, number: int) -> bytes:
        """Return the digest of chunk `number`."""
        start = number * DIGEST_BYTES
        return bytes(self._digests[start : start + DIGEST_BYTES])

    def digests(self, file: IndexedFile) -> bytes:
        """Return the digests of all chunks of `file`, concatenated."""
        return bytes(
            self._digests[file.first * DIGEST_BYTES : (file.first + file.chunks) * DIGEST_BYTES]
        )

    def chunks(self, file: IndexedFile) -> Iterator[Chunk]:
        """Yield the chunks of `file` in order."""
        numbers = range(file.first, file.first + file.chunks)
        lengths = self.lengths[numbers.start : numbers.stop]
        stored = self.stored[numbers.start : numbers.stop]
        offsets = accumulate(lengths, initial=0)
        stored_offsets = accumulate(stored, initial=file.offset)
        for number, offset, length, at, size in zip(
            numbers, offsets, lengths, stored_offsets, stored, strict=False
        ):
            yield Chunk(number, self.digest(number), offset, length, at, size)

    @property
    def total_bytes(self) -> int:
        """Payload bytes of all files."""
        return sum(file.size for file in self.files)

    def encode(self) -> bytes:
        """Return the binary form; the same index gives the same bytes everywhere."""
        text = msgspec.json.encode(self.header)
        columns = [_column(self.lengths), bytes(self._digests)]
        if self.header.codec:
            columns.append(_column(self.stored))
        prefix = _PREFIX.pack(MAGIC, VERSION, len(text))
        return b"".join((prefix, text, bytes(-len(text) % 8), *columns))


def decode(data: bytes, what: str = "chunk index") -> ChunkIndex:
    """Read an index; `what` names it in errors.

    Raises LimitExceeded for an index larger than any honest one, BadIndex or HostilePath otherwise.
    The cost is that of the files, not of the chunks.
    """
    if len(data) > limits.INDEX_BYTES:
        raise LimitExceeded(f"{what}: {len(data)} bytes; at most {limits.INDEX_BYTES}")
    try:
        magic, version, length = _PREFIX.unpack_from(data)
        if magic != MAGIC:
            raise BadIndex(f"{what}: starts with {magic!r}; expected {MAGIC!r}")
        if version != VERSION:
            raise BadIndex(
                f"{what}: version {version}; this program reads version {VERSION}",
                hint="upgrade modelpack-oci",
            )
        header = msgspec.json.decode(data[_PREFIX.size : _PREFIX.size + length], type=Header)
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadIndex(f"{what}: damaged header: {error}") from None
    table = memoryview(data)[_PREFIX.size + length + (-length % 8) :]
    per_chunk = 4 + DIGEST_BYTES + (4 if header.codec else 0)
    count, rest = divmod(len(table), per_chunk)
    if rest:
        raise BadIndex(f"{what}: a table of {len(table)} bytes is not whole chunks")
    lengths = _numbers(table[: 4 * count])
    digests = table[4 * count : (4 + DIGEST_BYTES) * count]
    stored = _numbers(table[(4 + DIGEST_BYTES) * count :]) if header.codec else lengths
    return ChunkIndex(header, lengths, stored, digests)


def _numbers(column: memoryview) -> "array[int]":
    numbers = array("I")
    numbers.frombytes(column)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _column(numbers: Sequence[int]) -> bytes:
    column = array("I", numbers)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _lay_out(
    header: Header, lengths: Sequence[int], stored: Sequence[int]
) -> Iterator[IndexedFile]:
    _check_header(header, lengths, stored)
    first = 0
    for number, layer in enumerate(header.layers):
        offset = 0
        for file, literal in zip(layer.files, _literal_sizes(header, layer), strict=False):
            offset += literal
            if file.chunks < 0 or first + file.chunks > len(lengths):
                raise BadIndex(f"chunk index: {file.path!r} has {file.chunks} chunks; too many")
            part = slice(first, first + file.chunks)
            if sum(lengths[part]) != file.size:
                raise BadIndex(f"chunk index: the chunks of {file.path!r} are not its size")
            yield IndexedFile(file.path, file.size, number, offset, first, file.chunks)
            offset += sum(stored[part])
            first += file.chunks
        if offset + _literal_sizes(header, layer)[-1] != layer.size:
            raise BadIndex(f"chunk index: layer {layer.digest} is not the size of its files")
    if first != len(lengths):
        raise BadIndex(f"chunk index: {len(lengths)} chunks listed, {first} used")


def _literal_sizes(header: Header, layer: LayerEntry) -> Sequence[int]:
    if header.codec:
        return layer.literals
    if layer.form == "raw":
        return (0, 0)
    return [len(part) for part in tarrule.literals([(f.path, f.size) for f in layer.files])]


def _check_header(header: Header, lengths: Sequence[int], stored: Sequence[int]) -> None:
    if header.algorithm not in CHUNK_HASHERS:
        raise BadIndex(f"chunk index: unknown digest algorithm {header.algorithm[:40]!r}")
    if header.codec not in ("", "zstd"):
        raise BadIndex(f"chunk index: unknown codec {header.codec[:40]!r}")
    if not 1 <= header.chunk_size <= limits.CHUNK_BYTES:
        raise BadIndex(f"chunk index: chunk size {header.chunk_size} is out of bounds")
    if lengths and not 1 <= min(lengths) <= max(lengths) <= header.chunk_size:
        raise BadIndex("chunk index: a chunk is empty or longer than the chunk size")
    # A zstd frame never needs more than this above its content.
    if stored and not 1 <= min(stored) <= max(stored) <= header.chunk_size * 257 // 256 + 128:
        raise BadIndex("chunk index: a stored chunk is empty or too long")
    if sum(len(layer.files) for layer in header.layers) > limits.FILES:
        raise LimitExceeded(f"chunk index: more than {limits.FILES} files")
    paths = [checked(file.path) for layer in header.layers for file in layer.files]
    for path in paths:
        if path.split("/")[0] == RESERVED_DIRECTORY:
            raise HostilePath(f"path {path[:80]!r} is in the directory that modelpack keeps")
    check_tree(paths)
    for layer in header.layers:
        _check_layer(header, layer)


def _check_layer(header: Header, layer: LayerEntry) -> None:
    try:
        Digest.parse(layer.digest)
        if header.codec:
            Digest.parse(layer.diff_id)
    except BadReference as error:
        raise BadIndex(f"chunk index: {error}") from None
    if layer.form not in ("tar", "raw") or (layer.form == "raw" and len(layer.files) != 1):
        raise BadIndex(f"chunk index: layer {layer.digest}: form {layer.form[:20]!r} is impossible")
    if any(file.size < 0 for file in layer.files):
        raise BadIndex(f"chunk index: layer {layer.digest}: a negative size")
    if header.codec and (len(layer.literals) != len(layer.files) + 1 or min(layer.literals) < 0):
        raise BadIndex(f"chunk index: layer {layer.digest}: wrong number of literals")
