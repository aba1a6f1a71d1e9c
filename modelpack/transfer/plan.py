"""What to ask for: pure functions from an index and what is there already to pieces."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

from modelpack.spec.index import ChunkIndex
from modelpack.spec.limits import KIB, MIB
from modelpack.spec.manifest import Descriptor
from modelpack.transfer.piece import Part, Piece

Job = TypeVar("Job")
PIECE_SIZE: Final = 16 * MIB
# Bytes between two wanted chunks that are cheaper to receive than to ask for separately.
GAP: Final = 64 * KIB
SLICE: Final = 4 * MIB  # of blobs without chunk digests


def parts_of(
    index: ChunkIndex, files: Iterable[int], missing: Callable[[int], bool]
) -> Iterator[tuple[int, Part]]:
    """Yield (layer number, part) for every missing chunk of the files, in stored order."""
    for number in sorted(files):
        file = index.files[number]
        for chunk in index.chunks(file):
            if missing(chunk.number):
                yield (
                    file.layer,
                    Part(
                        chunk.number, chunk.digest, chunk.stored_offset, chunk.stored_length,
                        number, chunk.offset, chunk.length,
                    ),
                )  # fmt: skip


def pieces(
    parts: Iterable[tuple[int, Part]],
    layers: tuple[Descriptor, ...],
    *,
    size: int = PIECE_SIZE,
    whole: frozenset[str] = frozenset(),
) -> Iterator[Piece]:
    """Put neighbouring parts together into pieces of about `size` bytes.

    Blobs whose digest is in `whole` are asked for in one piece, without a range.
    """
    group: list[Part] = []
    current = -1
    for layer, part in parts:
        if group and (
            layer != current
            or (
                layers[layer].digest not in whole
                and (
                    part.stored_offset - _end(group) > GAP
                    or _end(group) - group[0].stored_offset + part.stored_length > size
                )
            )
        ):
            yield _piece(layers[current], group, whole)
            group = []
        current = layer
        group.append(part)
    if group:
        yield _piece(layers[current], group, whole)


def side_by_side(groups: Iterable[Iterable[Job]], width: int) -> Iterator[Job]:
    """Take jobs in turn from `width` groups at a time, lazily; a group is what goes to one file.

    Two threads that write to one file wait for each other in the kernel, and burn a processor while
    they do: a tenth of the throughput on two.
    """
    waiting = iter(groups)
    turn = deque(iter(group) for group in islice(waiting, width))
    while turn:
        group = turn.popleft()
        for job in group:
            yield job
            turn.append(group)
            break
        else:
            turn.extend(iter(group) for group in islice(waiting, 1))


def slices(blob: Descriptor, number: int, first: int) -> Iterator[Part]:
    """Cut a blob without chunk digests into parts of file `number`, counted from `first`."""
    for at in range(0, blob.size, SLICE):
        length = min(SLICE, blob.size - at)
        yield Part(first + at // SLICE, b"", at, length, number, at, length)


def _end(group: list[Part]) -> int:
    return group[-1].stored_offset + group[-1].stored_length


def _piece(blob: Descriptor, group: list[Part], whole: frozenset[str]) -> Piece:
    if blob.digest in whole:
        return Piece(blob, 0, blob.size, tuple(group))
    start = group[0].stored_offset
    return Piece(blob, start, _end(group) - start, tuple(group))
