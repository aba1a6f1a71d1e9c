"""What a snapshot can show of the layers it came from, without keeping a second copy.

An uncompressed tar of ours is a pure function of its files (`spec.tarrule`); a raw layer is its
file. Compressed layers and the tars of others cannot be made again: they are not offered.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from cache_daemon.api.values import Snapshot
from modelpack.spec import names, tarrule
from modelpack.spec.errors import ModelpackError
from modelpack.spec.index import ChunkIndex, IndexedFile
from modelpack.spec.kinds import layer_plan
from modelpack.spec.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes of a layer that are not part of any file."""

    data: bytes

    @property
    def length(self) -> int:
        """How many bytes."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a layer that are bytes of a file: its path in the model, offset and length."""

    path: str
    offset: int
    length: int


Segment = Literal | Span


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob as a list of segments, which together have `size` bytes."""

    digest: str
    size: int
    segments: tuple[Segment, ...]

    def cut(self, offset: int, length: int) -> Iterator[Segment]:
        """Yield the segments of a range of the layer."""
        end = offset + length
        starts = accumulate((one.length for one in self.segments), initial=0)
        for start, segment in zip(starts, self.segments, strict=False):
            first, last = max(offset, start), min(end, start + segment.length)
            if first < last:
                yield _part(segment, first - start, last - first)


def blob(digest: str, data: bytes) -> Layer:
    """Return a small blob that is in memory."""
    return Layer(digest, len(data), (Literal(data),))


def indexed_layers(index: ChunkIndex, chosen: Callable[[str], bool]) -> Iterator[Layer]:
    """Yield the layers that can be made of the chosen files of an artifact with an index."""
    files: dict[int, list[IndexedFile]] = {}
    for file in index.files:
        files.setdefault(file.layer, []).append(file)
    for number, entry in enumerate(index.header.layers):
        held = files.get(number, [])
        if index.header.codec or not all(chosen(file.path) for file in held):
            continue
        if entry.form == "raw":
            yield Layer(entry.digest, entry.size, tuple(_spans(held)))
        else:
            yield _tar(entry.digest, held)


def index_layer(manifest: Manifest, index: ChunkIndex) -> Iterator[Layer]:
    """Yield the layer that holds the chunk index itself, if the manifest has one."""
    for layer in manifest.layers:
        if (layer.annotations or {}).get(names.ROLE) == names.ROLE_INDEX:
            payload = index.encode()
            before = tarrule.header(names.INDEX_PATH, len(payload))
            yield blob(layer.digest, before + payload + tarrule.padding(len(payload)) + tarrule.END)


def raw_layers(manifest: Manifest, snapshot: Snapshot) -> Iterator[Layer]:
    """Yield the raw layers of an artifact without an index whose file is in the snapshot."""
    sizes = {file.path: file.size for file in snapshot.files if file.id}
    try:
        plans = layer_plan(manifest)
    except ModelpackError:
        return
    for plan in plans:
        size = plan.descriptor.size
        if plan.form == "raw" and not plan.compression and sizes.get(plan.path) == size:
            yield Layer(plan.descriptor.digest, size, (Span(plan.path, 0, size),))


def _tar(digest: str, files: Sequence[IndexedFile]) -> Layer:
    around = tarrule.literals([(file.path, file.size) for file in files])
    segments: list[Segment] = []
    for before, file in zip(around, files, strict=False):
        segments += [Literal(before), Span(file.path, 0, file.size)]
    segments.append(Literal(around[-1]))
    return Layer(digest, sum(one.length for one in segments), tuple(segments))


def _spans(files: Iterable[IndexedFile]) -> Iterator[Span]:
    for file in files:
        yield Span(file.path, 0, file.size)


def _part(segment: Segment, offset: int, length: int) -> Segment:
    if isinstance(segment, Literal):
        return Literal(segment.data[offset : offset + length])
    return Span(segment.path, segment.offset + offset, length)
