"""Sharded models: a directory must hold every shard that its index names."""

from collections.abc import Collection

import msgspec

from modelpack.spec.errors import BadHeader


class _ShardIndex(msgspec.Struct):
    weight_map: dict[str, str]


def check_shards(data: bytes, present: Collection[str], name: str) -> None:
    """Raise BadHeader if the index (`*.safetensors.index.json`) names a shard that is missing."""
    directory = name.rpartition("/")[0]
    try:
        shards = set(msgspec.json.decode(data, type=_ShardIndex).weight_map.values())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadHeader(name, "weight_map", f"not a shard index: {error}") from None
    missing = sorted(
        shard for shard in shards if (f"{directory}/{shard}" if directory else shard) not in present
    )
    if missing:
        raise BadHeader(
            name, "weight_map",
            f"{len(missing)} of {len(shards)} shards are missing, first {missing[0][:120]!r}",
            hint="complete the download, or exclude the index with --exclude",
        )  # fmt: skip
