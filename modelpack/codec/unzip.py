"""Compressed blobs as streams of bounded steps.

However small its input, a read returns at most what was asked for and needs no more memory than
one window: a bomb costs its consumer nothing until it asks for more.
"""

import zlib
from typing import BinaryIO, Final, Protocol, cast

import zstandard

from modelpack.spec.errors import BadManifest, LimitExceeded
from modelpack.spec.limits import KIB, MIB
from modelpack.spec.source import ByteStream

# What `zstd --long` and `--ultra -22` need; RFC 8878 recommends decoders to support 8 MiB.
ZSTD_WINDOW: Final = 128 * MIB
# zlib copies what it left of its input after every step: large slices would make that quadratic.
_SLICE: Final = 64 * KIB
_GZIP: Final = 16 + zlib.MAX_WBITS


class Readable(Protocol):
    """A blob, read once from its start."""

    def read(self, size: int, /) -> bytes:
        """Return 1..size bytes, or nothing at the end."""


class GzipStream:
    """All members of a gzip file (RFC 1952), one after the other; zeros after a member are padding.

    `read` raises BadManifest for data that is damaged, cut off or not gzip.
    """

    def __init__(self, blob: Readable) -> None:
        self._blob = blob
        self._member = zlib.decompressobj(_GZIP)
        self._input = b""

    def read(self, size: int, /) -> bytes:
        """Return 1..size bytes, or nothing after the last member."""
        while True:
            if self._member.eof and not self._next_member():
                return b""
            if not self._input:
                self._input = self._blob.read(_SLICE)
                if not self._input:
                    raise BadManifest("gzip data ends in the middle")
            try:
                data = self._member.decompress(self._input, size)
            except zlib.error as error:
                raise BadManifest(f"gzip data is damaged: {error}") from error
            self._input = self._member.unconsumed_tail
            if data:
                return data

    def _next_member(self) -> bool:
        rest = self._member.unused_data.lstrip(b"\0")
        while not rest:
            rest = self._blob.read(_SLICE)
            if not rest:
                return False
            rest = rest.lstrip(b"\0")
        self._input = rest
        self._member = zlib.decompressobj(_GZIP)
        return True


class ZstdStream:
    """All frames of a zstd file (RFC 8878); skippable ones may stand anywhere.

    `read` raises BadManifest for damaged data and LimitExceeded for a window above ZSTD_WINDOW. A
    blob that is cut off just ends early.
    """

    def __init__(self, blob: Readable) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
        # Its annotations ask for a whole file; it calls nothing but read.
        source = cast("BinaryIO", blob)
        self._stream = decompressor.stream_reader(source, read_across_frames=True, closefd=False)

    def read(self, size: int, /) -> bytes:
        """Return 1..size bytes, or nothing at the end."""
        try:
            return self._stream.read(size)
        except zstandard.ZstdError as error:
            if "too much memory" in str(error):
                raise LimitExceeded(
                    f"zstd data needs a window of more than {ZSTD_WINDOW} bytes"
                ) from error
            raise BadManifest(f"zstd data is damaged: {error}") from error


def decoded(blob: Readable, compression: str) -> ByteStream:
    """Return the stream of what `blob` holds; `compression` is "gzip" or "zstd"."""
    return GzipStream(blob) if compression == "gzip" else ZstdStream(blob)
