import json

import pytest

from modelpack.formats.shards import check_numbering, check_shards
from modelpack.spec.errors import BadHeader


def index(*shards):
    weight_map = {f"t{n}": shard for n, shard in enumerate([*shards, *shards])}
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


def test_a_complete_model_passes():
    """Shards are looked for beside their index, and other files do not matter."""
    present = ["config.json", "unet/a.safetensors", "unet/b.safetensors", "unet/x.index.json"]
    check_shards(index("a.safetensors", "b.safetensors"), present, "unet/x.index.json")
    check_shards(index("a.safetensors"), ["a.safetensors"], "x.index.json")


def test_missing_shards_are_counted_and_the_first_is_named():
    """The message says what to download."""
    present = ["unet/a.safetensors", "c.safetensors"]
    with pytest.raises(BadHeader, match=r"2 of 3 shards are missing, first 'unet/b\.") as caught:
        check_shards(
            index("c.safetensors", "b.safetensors", "a.safetensors"), present, "unet/x.index.json"
        )
    assert caught.value.file == "unet/x.index.json"
    assert "--exclude" in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b"null", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "\xff"}}', b'{"weight_map": ' + b"[" * 100_000,
        b"version https://git-lfs.github.com/spec/v1",
    ],
    ids=range(9),
)  # fmt: skip
def test_what_is_no_index_is_refused(data):
    """Broken or hostile, it is one error."""
    with pytest.raises(BadHeader, match="not a shard index") as caught:
        check_shards(data, [], "x.index.json")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "present",
    [
        [],
        ["model.safetensors", "model-00001.safetensors", "a-00001-of-00002.bin"],
        ["m-00001-of-00001.gguf"],
        ["m-00002-of-00002.gguf", "m-00001-of-00002.gguf", "readme-00001-of-00009.md"],
        ["m-00000-of-00002.safetensors", "m-00001-of-00002.safetensors"],
        ["q4/m-00001-of-00001.gguf", "q8/m-00001-of-00002.gguf", "q8/m-00002-of-00002.gguf"],
    ],
    ids=range(6),
)
def test_complete_series_pass(present):
    """From one or from zero, several in one model, and names that only look similar."""
    check_numbering(present)


@pytest.mark.parametrize(
    ("present", "named"),
    [
        (["m-00001-of-00003.gguf"], "m-00002-of-00003.gguf: shards: 2 of 3 are missing"),
        (["d/m-00002-of-00002.gguf"], "d/m-00001-of-00002.gguf: shards: 1 of 2"),
        (
            ["a/m-00001-of-00002.safetensors", "b/m-00002-of-00002.safetensors"],
            "a/m-00002-of-00002.safetensors",
        ),
        (["m-00000-of-00002.gguf"], "m-00001-of-00002.gguf"),
        (["m-00009-of-00002.gguf"], "m-00001-of-00002.gguf"),
        (["a\nm-00001-of-00002.gguf"], "m-00002-of-00002.gguf"),
    ],
    ids=range(6),
)
def test_a_gap_in_a_series_is_named(present, named):
    """An incomplete download without an index is noticed too."""
    with pytest.raises(BadHeader, match=named):
        check_numbering(present)
