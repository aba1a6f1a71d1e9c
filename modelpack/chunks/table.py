"""The chunk table of one file: lengths and digests, computed once and remembered."""

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelpack.chunks.cut import CHUNK_SIZE, RULE_VERSION, cut
from modelpack.formats.detect import read_header
from modelpack.spec.digest import CHUNK_HASHERS
from modelpack.spec.errors import BadHeader, BadSource
from modelpack.spec.index import DIGEST_BYTES
from modelpack.spec.limits import MIB
from modelpack.state.digests import DigestCache, FileKey, fingerprint, now


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Lengths (bytes) and digests (concatenated) of all chunks of a file, in order."""

    lengths: Sequence[int]
    digests: bytes

    def digest(self, number: int) -> bytes:
        """Return the digest of chunk `number`."""
        return self.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]


class TableCache:
    """Chunk tables of files on this machine."""

    def __init__(self, cache: DigestCache, algorithm: str, chunk_size: int = CHUNK_SIZE) -> None:
        self._cache = cache
        self.algorithm = algorithm
        self.chunk_size = chunk_size

    def recall(self, key: FileKey, name: str) -> ChunkTable | None:
        """Return what is remembered of the file in this state, read under this name."""
        record = self._cache.get("files", self._key(key, name))
        if record is None or len(record) % (4 + DIGEST_BYTES):
            return None
        count = len(record) // (4 + DIGEST_BYTES)
        lengths = array("I")
        lengths.frombytes(record[: 4 * count])
        return ChunkTable(lengths, record[4 * count :])

    def remember(self, key: FileKey, name: str, table: ChunkTable, read_at: float) -> None:
        """Remember a table made from the file in this state, if the state can be trusted."""
        if key.settled(read_at):
            record = array("I", table.lengths).tobytes() + table.digests
            self._cache.put("files", self._key(key, name), record)

    def of(self, path: Path, name: str) -> ChunkTable:
        """Return the table of a file, reading it if it must be.

        Raises BadSource if the file changes meanwhile, OSError if it cannot be read.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            key = FileKey.of(os.fstat(fd))
            known = self.recall(key, name)
            if known is not None:
                return known
            read_at = now()
            table = self._digest(fd, key.size, name)
            if FileKey.of(os.fstat(fd)) != key:
                raise BadSource(f"{path}: changed while it was read", hint="run it again")
        finally:
            os.close(fd)
        self.remember(key, name, table, read_at)
        return table

    def _digest(self, fd: int, size: int, name: str) -> ChunkTable:
        with os.fdopen(os.dup(fd), "rb") as file:
            try:
                header = read_header(file, size, name)
            except BadHeader:
                header = None  # only a candidate for reuse: any cut will do
        lengths = cut(size, header, self.chunk_size)
        return ChunkTable(lengths, digest_chunks(fd, lengths, self.algorithm))

    def _key(self, key: FileKey, name: str) -> bytes:
        rule = f"{RULE_VERSION} {self.algorithm} {self.chunk_size} {kind_of(name)}"
        return fingerprint(key.packed(), rule.encode())


def kind_of(name: str) -> str:
    """Return what the name says about the format: it decides the cut."""
    suffix = name.rpartition(".")[2].lower()
    return suffix if suffix in ("safetensors", "gguf") else ""


def digest_chunks(fd: int, lengths: Sequence[int], algorithm: str) -> bytes:
    """Digest consecutive chunks of an open file, from its start; memory is one slice.

    Slices of 1 MiB: larger buffers fall out of the processor's cache and cost a third.
    """
    new = CHUNK_HASHERS[algorithm]
    buffer = memoryview(bytearray(MIB))
    digests = bytearray()
    offset = 0
    for length in lengths:
        hasher = new()
        end = offset + length
        while offset < end:
            got = os.preadv(fd, [buffer[: min(MIB, end - offset)]], offset)
            if not got:
                raise BadSource(f"file descriptor {fd}: shorter than it was", hint="run it again")
            hasher.update(buffer[:got])
            offset += got
        digests += hasher.digest()
    return bytes(digests)
