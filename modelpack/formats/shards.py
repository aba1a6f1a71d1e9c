"""Sharded models: a directory must hold every shard of which it holds one.

Shards are named by an index (`*.safetensors.index.json`), or only by their numbers
(`model-00001-of-00004.gguf`). Either way a missing one means a download that did not end.
"""

import re
from collections.abc import Collection
from typing import Final

import msgspec

from modelpack.spec.errors import BadHeader

_NUMBERED: Final = re.compile(
    r"(?P<stem>.*-)(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.(?:safetensors|gguf))",
    re.ASCII | re.DOTALL,
)


class _ShardIndex(msgspec.Struct):
    weight_map: dict[str, str]


def check_shards(data: bytes, present: Collection[str], name: str) -> None:
    """Raise BadHeader if the index names a shard that is missing.

    `name` is the path of the index, `present` has the paths of all files.
    """
    directory = name.rpartition("/")[0]
    try:
        shards = set(msgspec.json.decode(data, type=_ShardIndex).weight_map.values())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadHeader(
            name, "weight_map", f"not a shard index: {str(error)[:160]!r}",
            hint="download it again, or exclude it",
        ) from error  # fmt: skip
    paths = {f"{directory}/{shard}" if directory else shard for shard in shards}
    missing = sorted(paths.difference(present))
    if missing:
        raise BadHeader(
            name, "weight_map",
            f"{len(missing)} of {len(shards)} shards are missing, first {missing[0][:120]!r}",
            hint="complete the download, or exclude the index with --exclude",
        )  # fmt: skip


def check_numbering(present: Collection[str]) -> None:
    """Raise BadHeader if of files numbered `N-of-M` one is missing; `present` has all paths."""
    numbers: dict[tuple[str, int, str], set[int]] = {}
    for path in present:
        found = _NUMBERED.fullmatch(path)
        if found:
            series = (found["stem"], int(found["total"]), found["suffix"])
            numbers.setdefault(series, set()).add(int(found["number"]))
    for (stem, total, suffix), have in sorted(numbers.items()):
        # Most count from 1; a few of the first sharded models counted from 0.
        first = min(have, default=1) and 1
        missing = sorted(set(range(first, first + total)) - have)
        if missing:
            example = f"{stem}{missing[0]:05}-of-{total:05}{suffix}"
            raise BadHeader(
                example, "shards", f"{len(missing)} of {total} are missing, this one first",
                hint="complete the download, or exclude the others of its series",
            )  # fmt: skip
