import struct
from io import BytesIO

import pytest

from modelpack.formats.detect import read_header
from modelpack.spec.errors import BadHeader
from tests.formats.builders import entry, gguf, read, safetensors

WHOLE = safetensors({"t": entry()}, 4)


@pytest.mark.parametrize(
    "name", ["config.json", "model.bin", "model.safetensors.index.json", "safetensors_", "x.ggml"]
)
def test_files_of_other_names_are_taken_as_they_are(name):
    """The name decides: content that looks like weights is not looked at."""
    assert read(WHOLE, name) is None


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a/b/model.safetensors", WHOLE, "safetensors"),
        ("MODEL.SAFETENSORS", WHOLE, "safetensors"),
        (".safetensors", WHOLE, "safetensors"),
        ("m.Q4_K_M.gguf", gguf(), "gguf"),
        ("m.GGUF", gguf(), "gguf"),
    ],
)
def test_weight_files_are_known_by_their_suffix(name, data, expected):
    """In any case of letters, in any directory."""
    assert read(data, name).format == expected


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<I", 1),
        struct.pack("<I", 4),
        struct.pack("<I", 255),
        struct.pack(">I", 2),
        struct.pack(">I", 3),
    ],
)
def test_gguf_that_is_not_read_is_taken_as_it_is(head):
    """Older, newer and big-endian files may well be whole."""
    assert read(b"GGUF" + head + b"anything", "model.gguf") is None


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_a_git_lfs_pointer_is_refused_with_the_command_that_helps(suffix):
    """A clone without LFS has pointers of 130 bytes in place of weights."""
    pointer = (
        b"version https://git-lfs.github.com/spec/v1\n"
        b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
        b"size 90868376\n"
    )
    with pytest.raises(BadHeader, match="Git LFS pointer") as caught:
        read(pointer, f"model.{suffix}")
    assert "git lfs pull" in caught.value.hint


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_an_empty_weight_file_is_refused(suffix):
    """Nobody publishes one on purpose."""
    with pytest.raises(BadHeader, match="the file is empty"):
        read(b"", f"model.{suffix}")


def test_a_file_is_read_from_its_start_wherever_it_stands():
    """A descriptor that was read before gives the same header again."""
    file = BytesIO(gguf())
    size = len(gguf())
    first = read_header(file, size, "m.gguf")
    file.seek(3)
    assert read_header(file, size, "m.gguf") == first
