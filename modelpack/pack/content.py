"""A layer as bytes that can be read again from any offset, made from the files as it goes."""

from collections.abc import Iterator
from itertools import accumulate

from modelpack.codec.zstd import FrameWriter
from modelpack.pack.digest import LayerDigests, chunk_bytes
from modelpack.pack.origin import Origin
from modelpack.pack.plan import PlannedLayer
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import Descriptor


class PlainLayer:
    """Literals and payloads, as they are (a `spec.source.Content`)."""

    def __init__(self, origin: Origin, layer: PlannedLayer, blob: Descriptor) -> None:
        self.blob = blob
        self._origin = origin
        self._layer = layer

    def read_from(self, offset: int) -> Iterator[bytes | memoryview]:
        """Yield the bytes from `offset` (see Content)."""
        for number, literal in enumerate(self._layer.literals):
            yield from _slices(literal, offset)
            offset = max(0, offset - len(literal))
            if number == len(self._layer.files):
                return
            file = self._layer.files[number]
            if offset < file.size:
                with self._origin.stream(file, offset) as stream:
                    while data := stream.read(MIB):
                        yield data
            offset = max(0, offset - file.size)


class PackedLayer:
    """Frames, compressed again on every pass: nothing is stored in between."""

    def __init__(
        self, origin: Origin, layer: PlannedLayer, blob: Descriptor, digests: LayerDigests
    ) -> None:
        self.blob = blob
        self._origin = origin
        self._layer = layer
        self._digests = digests

    def read_from(self, offset: int) -> Iterator[bytes | memoryview]:
        """Yield the bytes from `offset` (see Content)."""
        writer = FrameWriter()
        first = 0
        for number, literal in enumerate(self._layer.literals):
            size = self._digests.literals[number]
            if offset < size:
                yield from _slices(writer.frame(literal), offset)
            offset = max(0, offset - size)
            if number == len(self._layer.files):
                return
            stored = self._digests.stored[first : first + len(self._layer.cuts[number])]
            first += len(stored)
            # Whole frames before the offset need neither be read nor compressed.
            ends = list(accumulate(stored, initial=0))
            skip = sum(1 for end in ends[1:] if end <= offset)
            offset -= ends[skip]
            for data in chunk_bytes(self._origin, self._layer, number, skip):
                yield from _slices(writer.frame(data), offset)
                offset = 0


def _slices(data: bytes, offset: int) -> Iterator[memoryview]:
    view = memoryview(data)
    for at in range(offset, len(view), MIB):
        yield view[at : at + MIB]
