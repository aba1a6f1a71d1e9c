import struct
from io import BytesIO

import pytest

from modelpack.formats.detect import read_header
from modelpack.formats.ggml_types import GGML_TYPES
from modelpack.spec.errors import BadHeader
from modelpack.spec.tensors import Tensor
from tests.formats.builders import (
    ARRAY,
    BOOL,
    F32,
    F64,
    GGUF,
    I8,
    I32,
    STRING,
    U8,
    U32,
    U64,
    array,
    array_pair,
    gguf,
    info,
    pair,
    peak_memory,
    read,
    short,
    text,
)

Q4_K = 12
NEW = 777


def tensors(data):
    return read(data, GGUF).tensors


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_come_in_file_order_with_shapes_as_everybody_else_writes_them(version):
    """GGUF lists the fastest dimension first and offsets from the data; we do neither."""
    infos = [info("norm", (8,), 0, 288), info("ffn", (256, 2), Q4_K, 0)]
    data = gguf([pair("general.architecture", STRING, "llama")], infos, 320, version=version)
    found = read(data, GGUF)
    start = len(data) - 320
    assert found.format == "gguf"
    assert found.data_start == start
    assert start % 32 == 0
    assert found.metadata == {"general.architecture": "llama"}
    assert found.tensors == (
        Tensor("ffn", "Q4_K", (2, 256), start, start + 288),
        Tensor("norm", "F32", (8,), start + 288, start + 320),
    )


def test_scalars_and_short_values_are_kept_and_vocabularies_are_not():
    """What facts need stays; what is large and belongs to the tokenizer does not."""
    pairs = [
        pair("u8", U8, 7),
        pair("i8", I8, -7),
        pair("f32", F32, 0.5),
        pair("yes", BOOL, 1),
        pair("u64", U64, 1 << 63),
        pair("f64", F64, 1e300),
        pair("text", STRING, "имя"),
        pair("not utf-8", STRING, b"\xff"),
        pair("template", STRING, "x" * 4097),
        array_pair("layers", I32, list(range(1024))),
        array_pair("scores", F32, [0.0] * 1025),
        array_pair("tokens", STRING, ["a", "", "b" * 5000]),
        array_pair("nested", ARRAY, [array(U8, [1, 2]), array(STRING, ["x"])]),
        array_pair("nothing", ARRAY, []),
        pair("last", U32, 42),
    ]
    assert read(gguf(pairs), GGUF).metadata == {
        "u8": 7, "i8": -7, "f32": 0.5, "yes": True, "u64": 1 << 63, "f64": 1e300, "text": "имя",
        "not utf-8": "\ufffd", "layers": tuple(range(1024)), "last": 42,
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "dtype"), [(k, t) for k, (t, _, _) in GGML_TYPES.items()])
def test_every_type_has_its_size(kind, dtype):
    """Two rows of one block each are two blocks long."""
    _, block, width = GGML_TYPES[kind]
    data = gguf([], [info("t", (block, 2), kind)], 2 * width)
    (found,) = tensors(data)
    assert (found.dtype, found.size, found.elements) == (dtype, 2 * width, 2 * block)
    with pytest.raises(BadHeader, match="ends at byte"):
        tensors(data[:-1])


def test_bits_per_weight_are_those_that_ggml_documents():
    """The table agrees with the numbers that people know the types by."""
    bits = {name: 8 * width / block for name, block, width in GGML_TYPES.values()}
    known = {
        "Q4_0": 4.5, "Q5_1": 6.0, "Q8_0": 8.5, "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5,
        "Q5_K": 5.5, "Q6_K": 6.5625, "IQ1_S": 1.5625, "IQ1_M": 1.75, "IQ2_XXS": 2.0625,
        "IQ2_XS": 2.3125, "IQ2_S": 2.5625, "IQ3_XXS": 3.0625, "IQ3_S": 3.4375, "IQ4_NL": 4.5,
        "IQ4_XS": 4.25, "TQ1_0": 1.6875, "TQ2_0": 2.0625, "MXFP4": 4.25, "NVFP4": 4.5,
        "Q1_0": 1.125, "BF16": 16, "F16": 16, "F32": 32, "F64": 64, "I8": 8, "I64": 64,
    }  # fmt: skip
    assert {name: bits[name] for name in known} == known


def test_a_tensor_of_an_unknown_type_reaches_to_the_next_one():
    """New types and those of forks are published and cut at their boundaries all the same."""
    infos = [info("b", (4,), NEW, 64), info("a", (9,), NEW, 0), info("end", (8,), 0, 96)]
    data = gguf([], infos, 128)
    found = [(t.name, t.dtype, t.start, t.end) for t in tensors(data)]
    start = len(data) - 128
    assert found == [
        ("a", "TYPE_777", start, start + 64),
        ("b", "TYPE_777", start + 64, start + 96),
        ("end", "F32", start + 96, start + 128),
    ]


def test_empty_tensors_share_the_offset_of_the_next():
    """Of tensors at one place all but the last are empty."""
    infos = [info("a", (4,), NEW, 0), info("e", (0, 5), 0, 0), info("f", (0,), 12, 0)]
    with pytest.raises(BadHeader, match="has no room"):
        tensors(gguf([], [*infos, info("c", (4,), NEW, 0)], 32))
    found = tensors(gguf([], infos, 32))
    assert [(t.name, t.size) for t in found] == [("e", 0), ("f", 0), ("a", 32)]


@pytest.mark.parametrize("alignment", [1, 8, 24, 64, 1 << 20])
def test_the_alignment_is_the_files_own(alignment):
    """Multiples of eight as the document says, powers of two as llama.cpp does."""
    pairs = [pair("general.alignment", U32, alignment)]
    infos = [info("a", (1,), 24, 0), info("b", (1,), 24, alignment)]
    data = gguf(pairs, infos, alignment + 1, alignment=alignment)
    assert [t.end for t in tensors(data)] == [len(data) - alignment, len(data)]


def test_a_file_without_tensors_is_read():
    """Vocabulary-only files exist; the padding after their metadata need not."""
    data = gguf([pair("general.type", STRING, "vocab")])
    whole = read(data, GGUF)
    bare = read(data.rstrip(b"\0"), GGUF)
    assert whole.tensors == bare.tensors == ()
    assert bare.data_start == len(data.rstrip(b"\0"))


def raw_pair(kind, rest):
    """Return a pair of one key with these bytes for a value."""
    return text("k") + struct.pack("<I", kind) + rest


NEST = struct.pack("<IQ", ARRAY, 1)
ONE = info("t", (8,))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"GGML\3\0\0\0", "magic: b'GGML', expected b'GGUF'"),
        (b"<!DOCTYPE html>", "magic"),
        (b"GGUF", "version: 4 bytes at byte 4 reach beyond the file"),
        (b"GGUF\3\0\0", "version"),
        (gguf(version=0), "version: 0;"),
        (gguf(version=0xDEAD), "version: 57005;"),
        (gguf(counts=(1 << 60, 0)), "tensor count: 1152921504606846976 entries; at most 1000000"),
        (gguf(counts=(0, 1 << 60)), "metadata count: .* at most 10000"),
        (gguf(counts=(999_999, 0)), "999999 entries do not fit in the file"),
        (gguf(counts=(0, 9_999)), "9999 entries do not fit in the file"),
        (gguf(counts=(1, 0))[:-8] + bytes(8), "tensor count: 1 entries do not fit"),
        (gguf([struct.pack("<Q", 1 << 63) + bytes(32)]), "a string of 9223372036854775808 bytes"),
        (gguf([text(b"\xff") + struct.pack("<IB", U8, 0)]), "metadata key 0: not UTF-8"),
        (gguf([pair("a", U8, 1), pair("a", U8, 2)]), "metadata 'a': is given twice"),
        (gguf([raw_pair(13, bytes(8))]), "type 13 is unknown"),
        (gguf([raw_pair(STRING, struct.pack("<Q", 1 << 63))]), "reach beyond the file"),
        (gguf([raw_pair(STRING, struct.pack("<Q", 5000))]), "reach beyond the file"),
        (gguf([raw_pair(ARRAY, struct.pack("<IQ", 13, 0))]), "type 13 is unknown"),
        (gguf([raw_pair(ARRAY, struct.pack("<IQ", U8, 1 << 60))]), "entries; at most"),
        (gguf([raw_pair(ARRAY, struct.pack("<IQ", U64, 1 << 20))]), "entries do not fit"),
        (gguf([raw_pair(ARRAY, struct.pack("<IQ", STRING, 1 << 20))]), "entries do not fit"),
        (gguf([raw_pair(ARRAY, struct.pack("<IQ", ARRAY, 1 << 20))]), "entries do not fit"),
        (gguf([raw_pair(ARRAY, struct.pack("<IQQ", STRING, 1, 1 << 62))]), "reach beyond"),
        (gguf([raw_pair(ARRAY, NEST * 1000)]), "nested too deeply"),
        (gguf([pair("general.alignment", U32, 0)]), "general.alignment: 0 is not"),
        (gguf([pair("general.alignment", U32, 12)]), "general.alignment: 12 is not"),
        (gguf([pair("general.alignment", U32, 1 << 30)]), "general.alignment"),
        (gguf([pair("general.alignment", I32, -32)]), "general.alignment"),
        (gguf([pair("general.alignment", BOOL, 1)]), "general.alignment"),
        (gguf([pair("general.alignment", F32, 32.0)]), "general.alignment"),
        (gguf([pair("general.alignment", STRING, "3" * 4096)]), "general.alignment"),
        (gguf([array_pair("general.alignment", U32, [32] * 1024)]), "general.alignment"),
        (gguf([], [ONE, ONE], 32), "overlaps the one after it"),
        (gguf([], [ONE, info("t", (8,), 0, 32)], 64), "tensor 't': is given twice"),
        (gguf([], [ONE, info("u", (8,), 0, 32)], 32), "ends at byte"),
        (gguf([], [info("u", (9,)), info("t", (8,), 0, 32)], 64), "overlaps the one after it"),
        (gguf([], [info("t", (8,), 0, 31)], 64), "offset 31 is not aligned to 32"),
        (gguf([], [info("t", (8,), 0, (1 << 64) - 32)], 64), "ends at byte"),
        (gguf([], [info("t", (8,), NEW, (1 << 64) - 32)], 64), "ends at byte"),
        (gguf([], [info("t", (8,), 1024)], 64), "type 1024 is unknown"),
        (gguf([], [info("t", (8,), (1 << 32) - 1)], 64), "type 4294967295 is unknown"),
        (gguf([], [info("t", (1 << 63,))], 64), "too large"),
        (gguf([], [info("t", (0, (1 << 64) - 1))], 64), "too large"),
        (gguf([], [info("t", ((1 << 64) - 1,) * 8)], 64), "too large"),
        (gguf([], [info("t", (1,) * 9)], 64), "9 dimensions"),
        (gguf([], [info("t", (16, 2), 2)], 64), "not whole blocks of 32"),
        (gguf([], [info("t", (), 2)], 64), "not whole blocks of 32"),
        (gguf([], [info("t", (513,), NEW)], 64), "has no room for shape"),
        (gguf([], [info(b"\xc3(\n", (8,))], 64), "tensor name: not UTF-8"),
        (gguf([], [info("t" * 65_536, (8,))], 64), "at most 65535"),
        (gguf([], [info("\n\x1b[2J" * 100, (9,))], 32), "ends at byte"),
    ],
    ids=short,
)  # fmt: skip
def test_a_header_that_is_not_what_the_format_says_is_refused(data, problem):
    """Each is refused in one printable line, without allocating what it claims to hold."""

    def attempt():
        with pytest.raises(BadHeader, match=problem) as caught:
            read(data, GGUF)
        assert str(caught.value).startswith(f"{GGUF}: ")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
        assert caught.value.hint

    assert peak_memory(attempt) < 1 << 20


def test_every_truncation_is_noticed():
    """No prefix of a file passes for the file."""
    pairs = [pair("k", STRING, "v"), array_pair("v", STRING, ["a", "b"]), array_pair("n", U8, [1])]
    data = gguf(pairs, [info("t", (8,))], 32)
    for length in range(len(data)):
        with pytest.raises(BadHeader):
            read(data[:length], GGUF)


@pytest.mark.parametrize(
    "pairs",
    [
        [array_pair("tokens", STRING, ["x"] * 10) + bytes(8)],
        [pair("template", STRING, "x" * 5000)],
        [array_pair("scores", F32, [0.0] * 2000)],
    ],
    ids=["strings", "string", "numbers"],
)
def test_a_file_shorter_than_its_size_is_noticed(pairs):
    """What is passed over and turns out not to be there is an error at the next field."""
    data = gguf(pairs, [info("t", (8,))], 32)
    for length in (60, 100):
        with pytest.raises(BadHeader):
            read_header(BytesIO(data[:length]), len(data), GGUF)


def test_a_vocabulary_costs_no_memory():
    """Two megabytes of tokens are passed over in a few kilobytes."""
    tokens = struct.pack("<IQ", STRING, 200_000) + (struct.pack("<Q", 3) + b"abc") * 200_000
    scores = struct.pack("<IQ", F32, 200_000) + bytes(800_000)
    data = gguf([raw_pair(ARRAY, tokens), text("s") + struct.pack("<I", ARRAY) + scores])
    file = BytesIO(data)
    assert peak_memory(lambda: read_header(file, len(data), GGUF)) < 100_000
