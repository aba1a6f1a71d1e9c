import json
import struct
from contextlib import suppress
from io import BytesIO

import pytest

from modelpack.formats.detect import read_header
from modelpack.spec import limits
from modelpack.spec.errors import BadHeader
from modelpack.spec.tensors import Tensor
from tests.formats.builders import ST, entry, peak_memory, read, safetensors, short

WHOLE = safetensors({"w": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [3], 24, 30)}, 30)


def test_tensors_come_in_file_order_with_offsets_in_the_file():
    """Whatever the order of the names, tensors are those of the file, counted from its start."""
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", [3], 24, 30),
        "w": entry("F32", [2, 3], 0, 24),
    }
    data = safetensors(header, 30)
    found = read(data)
    start = len(data) - 30
    assert found.format == "safetensors"
    assert found.data_start == start
    assert found.metadata == {"format": "pt"}
    assert found.tensors == (
        Tensor("w", "F32", (2, 3), start, start + 24),
        Tensor("b", "BF16", (3,), start + 24, start + 30),
    )


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("BOOL", 8), ("U8", 8), ("I8", 8), ("U16", 16), ("I16", 16), ("U32", 32), ("I32", 32),
        ("U64", 64), ("I64", 64), ("F16", 16), ("BF16", 16), ("F32", 32), ("F64", 64), ("C64", 64),
        ("F8_E4M3", 8), ("F8_E5M2", 8), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8), ("F8_E5M2FNUZ", 8),
        ("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6),
    ],
)  # fmt: skip
def test_every_dtype_of_the_format_has_its_width(dtype, bits):
    """Sixteen elements take exactly sixteen times the width of their type."""
    size = 2 * bits
    assert read(safetensors({"t": entry(dtype, [4, 4], 0, size)}, size)).tensors[0].dtype == dtype
    with pytest.raises(BadHeader, match="bytes, data_offsets give"):
        read(safetensors({"t": entry(dtype, [4, 4], 0, size + 1)}, size + 1))


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({}, 0),
        ({"__metadata__": {}}, 0),
        ({"scalar": entry("F32", [], 0, 4)}, 4),
        ({"empty": entry("F32", [0, 7], 0, 0), "t": entry()}, 4),
        ({"first": entry(), "between": entry("I8", [0], 4, 4), "t": entry("I8", [1], 4, 5)}, 5),
        ({"": entry()}, 4),
        ({'ключ 🤗 \n " :': entry()}, 4),
        ({"dtype": entry(), "shape": entry("I8", [1], 4, 5)}, 5),
        ({"__metadata__": {"a": "v", ":k": ":w"}, ":": entry()}, 4),
        ({"new": entry("F3_E1M1", [10, 8], 0, 30)}, 30),
        (json.dumps({"t": entry()}).encode() + b"   \n", 4),
        ({"__metadata__": {"dtype": "{", "a": "}:", '"b": {': '\\" : {"'}, "t": entry()}, 4),
    ],
)  # fmt: skip
def test_unusual_headers_that_are_legal_are_read(header, data):
    """Scalars, empty tensors, odd names, padding, and types of the future."""
    assert read(safetensors(header, data)) is not None


ONE = json.dumps(entry())
HUGE = 1 << 63


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"\x02\0\0\0\0\0\0", "the file has only 7 bytes"),
        (struct.pack("<Q", 3) + b"{}", "3 bytes, in a file of 10"),
        (struct.pack("<Q", HUGE) + b"{}", "at most 100000000"),
        (struct.pack("<Q", 0), "does not start with"),
        (safetensors(b" {}"), "does not start with"),
        (safetensors(b"[]"), "does not start with"),
        (safetensors(b"\xef\xbb\xbf{}"), "does not start with"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "header length: "),
        (safetensors(b"{"), "header: "),
        (safetensors(b"{}{}"), "header: .*malformed"),
        (safetensors(b"{}\0\0"), "header: .*malformed"),
        (safetensors(b'{"a": %s,}' % ONE.encode(), 4), "header: .*malformed"),
        (safetensors(b'{"\xff": %s}' % ONE.encode(), 4), "not UTF-8"),
        (safetensors(b'{"\\ud800": %s}' % ONE.encode(), 4), "header: "),
        (safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply"),
        (safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply"),
        (safetensors({"t": 1}), "Expected `object`"),
        (safetensors({"t": ["F32", [1], [0, 4]]}, 4), "Expected `object`"),
        (safetensors({"t": {}}), "missing required field"),
        (safetensors({"t": {**entry(), "x\n\x1b": 1}}, 4), r"unknown field `x\?\?`"),
        (safetensors({"t": entry(shape=[1.0])}, 4), "Expected `int`"),
        (safetensors({"t": entry(shape=[True])}, 4), "Expected `int`"),
        (safetensors({"t": entry(shape=["1"])}, 4), "Expected `int`"),
        (safetensors({"t": entry(shape=None)}, 4), "Expected `array`"),
        (safetensors({"t": entry(shape=[-1])}, 4), "Expected `int` >= 0"),
        (safetensors({"t": entry(shape=[-1, -1])}, 4), "Expected `int` >= 0"),
        (safetensors({"t": entry(shape=[HUGE])}, 4), "Expected `int` <="),
        (safetensors({"t": entry(shape=[0, 1 << 90], end=0)}), "shape"),
        (safetensors({"t": entry(shape=[0, int("9" * 400)], end=0)}), "shape"),
        (safetensors({"t": entry(shape=[1 << 40, 1 << 40])}, 4), "too large"),
        (safetensors({"t": entry("F3_NEW", shape=[1 << 40, 1 << 40])}, 4), "too large"),
        (safetensors({"t": entry(shape=[1] * 65)}, 4), "of length <= 64"),
        (safetensors({"t": entry(shape=[1] * 30_000)}, 4), "in more than 65536 bytes"),
        (safetensors({"t": entry(dtype="f32")}, 4), "'f32' is not one"),
        (safetensors({"t": entry(dtype="F32\n")}, 4), r"'F32\\n' is not one"),
        (safetensors({"t": entry(dtype="A" * 33)}, 4), "is not one"),
        (safetensors({"t": entry(dtype=7)}, 4), "Expected `str`"),
        (safetensors({"t": entry("F3_NEW", [33])}, 4), "at least 4.125 bytes"),
        (safetensors({"t": entry("F4", [3], 0, 1)}, 1), "1.5 bytes, data_offsets give 1"),
        (safetensors({"t": entry(begin=4, end=0)}, 4), "not a range"),
        (safetensors({"t": entry(begin=-4, end=0)}, 4), "Expected `int` >= 0"),
        (safetensors({"t": entry(begin=HUGE, end=HUGE + 4)}, 4), "data_offsets"),
        (safetensors({"t": entry(begin=0.0)}, 4), "Expected `int`"),
        (safetensors({"t": {**entry(), "data_offsets": [0, 4, 8]}}, 4), "of length 2"),
        (safetensors({"t": entry()}, 3), "ends at byte 73 of a file of 72"),
        (safetensors({"t": entry()}, 5), "1 bytes after the last tensor"),
        (safetensors({}, 1), "1 bytes after the last tensor"),
        (safetensors({"t": entry(begin=4, end=8)}, 8), "leaves a hole before"),
        (safetensors({"a": entry(), "t": entry(begin=8, end=12)}, 12), "leaves a hole before"),
        (safetensors({"a": entry(), "t": entry(begin=0, end=4)}, 4), "overlaps the one before"),
        (safetensors({"a": entry(), "t": entry(begin=2, end=6)}, 6), "overlaps the one before"),
        (safetensors({"__metadata__": {"a": 1}}), "Expected `str`"),
        (safetensors({"__metadata__": {"a": {"b": "c"}}}), "Expected `str`"),
        (safetensors({"__metadata__": None}), "Expected `object`"),
        (safetensors({"__metadata__": "pt"}), "Expected `object`"),
    ],
    ids=short,
)  # fmt: skip
def test_a_header_that_is_not_what_the_format_says_is_refused(data, problem):
    """Each is refused in one printable line that names the file and what is wrong."""
    with pytest.raises(BadHeader, match=problem) as caught:
        read(data)
    assert str(caught.value).startswith(f"{ST}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"t": ONE, "t": ONE}', "'t' is given twice"),
        ('{"t": ONE, "\\u0074": ONE}', "'t' is given twice"),
        ('{"t": 1, "t": ONE}', "a field of a tensor or of __metadata__ is given twice"),
        ('{"t": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "field"),
        ('{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0,4], "dtype": "I32"}}', "field"),
        ('{"__metadata__": {"a": "b", "a": "b"}, "t": ONE}', "field"),
        ('{"__metadata__": {}, "__metadata__": {}, "t": ONE}', "'__metadata__' is given"),
        ('{"__metadata__": {"a": "b"}, "t": ONE, "__metadata__": {}}', "'__metadata__'"),
    ],
)
def test_a_key_that_is_given_twice_is_refused_at_any_level(text, named):
    """Readers disagree about which of two equal keys counts, however they are written."""
    with pytest.raises(BadHeader, match=named):
        read(safetensors(text.replace("ONE", ONE).encode(), 4))


@pytest.mark.parametrize("length", range(0, len(WHOLE), 5))
def test_every_truncation_is_noticed(length):
    """No prefix of a file passes for the file."""
    with pytest.raises(BadHeader) as caught:
        read(WHOLE[:length])
    assert "download" in caught.value.hint


def test_a_file_shorter_than_its_size_is_noticed():
    """A file that shrinks while it is read is refused, and nothing is allocated for the rest."""
    data = struct.pack("<Q", limits.HEADER_BYTES) + b'{"a": '
    file = BytesIO(data)

    def attempt():
        with pytest.raises(BadHeader, match="ends too early"):
            read_header(file, 1 << 60, ST)

    assert peak_memory(attempt) < limits.HEADER_BYTES + limits.MIB


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":[' + b"[]," * 300_000 + b"[]]}",
        b'{"a":{"dtype":"F32","shape":[' + b"1000," * 200_000 + b'1],"data_offsets":[0,4]}}',
        b"{" + b",".join(b'"%06d":0' % n for n in range(100_000)) + b"}",
        b'{"__metadata__":{' + b",".join(b'"%06d":""' % n for n in range(100_000)) + b"}}",
        b'{"a":"' + b'\\"' * 500_000 + b'"}',
    ],
    ids=["lists", "shape", "keys", "metadata", "escapes"],
)
def test_memory_is_at_most_a_multiple_of_the_header(text):
    """A megabyte of the densest JSON costs less than twenty."""

    def attempt():
        with suppress(BadHeader):
            read(safetensors(text))

    assert peak_memory(attempt) < 20 * len(text)


def test_more_keys_than_any_model_has_are_refused_before_they_cost_memory():
    """The colons are counted first."""
    text = b"{" + b'"":0,' * 4_000_001 + b'"":0}'

    def attempt():
        with pytest.raises(BadHeader, match="more than 4000000 keys"):
            read(safetensors(text))

    assert peak_memory(attempt) < 4 * len(text)
