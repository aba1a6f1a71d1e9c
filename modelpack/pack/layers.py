"""Which file goes into which layer: a pure function of paths and sizes.

One weight file per layer, so that layers are shared between versions and fetched in parallel; small
files together, last, so that editing a config leaves the layers before it shared on a node.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from modelpack.pack.origin import SourceFile
from modelpack.spec.limits import MIB

# 480 layers mounted on a fresh containerd; its overlay options must fit one page and grow with
# snapshot ids. One is kept for the chunk index.
MAX_LAYERS: Final = 256
WEIGHT_BYTES: Final = 16 * MIB
BUNDLE_BYTES: Final = 512 * MIB
_WEIGHT_SUFFIXES: Final = (".safetensors", ".gguf")


def plan_layers(files: Sequence[SourceFile]) -> list[tuple[SourceFile, ...]]:
    """Group files, which are sorted by path, into at most MAX_LAYERS - 1 layers."""
    weights = [file for file in files if is_weight(file)]
    bundles = _bundle([file for file in files if not is_weight(file)])
    room = MAX_LAYERS - 1
    # However many bundles there are, weights keep at least half of the layers.
    bundles = _spread(bundles, min(len(bundles), room // 2)) if weights else _spread(bundles, room)
    groups = _spread([(file,) for file in weights], room - len(bundles))
    return [*groups, *bundles]


def is_weight(file: SourceFile) -> bool:
    """Whether the file gets a layer of its own."""
    return file.size >= WEIGHT_BYTES or (
        file.size > 0 and file.path.lower().endswith(_WEIGHT_SUFFIXES)
    )


def _bundle(files: Sequence[SourceFile]) -> list[tuple[SourceFile, ...]]:
    bundles: list[tuple[SourceFile, ...]] = []
    current: list[SourceFile] = []
    size = 0
    for file in files:
        if current and size + file.size > BUNDLE_BYTES:
            bundles.append(tuple(current))
            current, size = [], 0
        current.append(file)
        size += file.size
    return [*bundles, tuple(current)] if current else bundles


def _spread(groups: list[tuple[SourceFile, ...]], room: int) -> list[tuple[SourceFile, ...]]:
    """Join neighbouring groups until there are at most `room`, evenly by count."""
    if len(groups) <= room:
        return groups
    bounds = [len(groups) * number // room for number in range(room + 1)]
    return [
        tuple(file for group in groups[start:end] for file in group)
        for start, end in pairwise(bounds)
    ]
