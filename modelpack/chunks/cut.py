"""Where a file is cut into chunks: a pure function of its size and its tensor boundaries.

The rule is part of the artifact format (docs/design/artifact.md, "Chunks"): an unchanged tensor has
unchanged chunks whatever moved around it. Measured on real edits it sends 0-9 % again where cutting
at file offsets sends everything (ADR 0003).
"""

from array import array
from typing import Final

from modelpack.spec.limits import KIB, MIB
from modelpack.spec.tensors import TensorFile

CHUNK_SIZE: Final = 4 * MIB
# Tensors below SMALL (norms, biases, scales) share chunks of at most RUN.
SMALL: Final = 64 * KIB
RUN: Final = 1 * MIB
RULE_VERSION: Final = 1


def cut(size: int, header: TensorFile | None = None, chunk_size: int = CHUNK_SIZE) -> "array[int]":
    """Return the chunk lengths of a file of `size` bytes, in order; their sum is `size`.

    Without a header the file is cut at fixed offsets. With one, the header is cut on its own, every
    tensor at fixed offsets from its own start, and runs of small tensors are put together. Bytes
    between tensors (alignment) belong to the tensor before them.
    """
    lengths = array("I")
    if header is None:
        _append(lengths, size, chunk_size)
        return lengths
    starts = [tensor.start for tensor in header.tensors if tensor.size]
    # The header never shares a chunk with a tensor: editing metadata must cost nothing else.
    _append(lengths, starts[0] if starts else size, chunk_size)
    run = 0
    for start, end in zip(starts, [*starts[1:], size], strict=False):
        length = end - start
        if length < SMALL and run + length <= min(RUN, chunk_size):
            run += length
            continue
        _append(lengths, run, chunk_size)
        run = length if length < SMALL else 0
        if not run:
            _append(lengths, length, chunk_size)
    _append(lengths, run, chunk_size)
    return lengths


def _append(lengths: "array[int]", length: int, chunk_size: int) -> None:
    whole, rest = divmod(length, chunk_size)
    lengths.extend([chunk_size] * whole)
    if rest:
        lengths.append(rest)
