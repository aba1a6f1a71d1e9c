"""Files nobody thought of: random ones, and valid ones with something changed."""

import math
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.chunks.cut import cut
from modelpack.formats.ggml_types import GGML_TYPES
from modelpack.formats.safetensors import _BITS
from modelpack.spec.errors import BadHeader
from tests.formats.builders import (
    ARRAY,
    F32,
    GGUF,
    I32,
    ST,
    STRING,
    U8,
    U32,
    array,
    array_pair,
    entry,
    gguf,
    info,
    pair,
    peak_memory,
    read,
    safetensors,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(0, 4), max_size=4)


@st.composite
def safetensors_models(draw):
    """Draw the tensors of a file, in file order: name -> (dtype, shape)."""
    dtypes = st.sampled_from([dtype for dtype, bits in _BITS.items() if bits % 8 == 0])
    return draw(st.dictionaries(NAMES, st.tuples(dtypes, SHAPES), max_size=8))


@st.composite
def gguf_models(draw):
    """Draw the tensors of a file: name -> (type, shape with whole blocks)."""
    found = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=8)):
        kind = draw(st.sampled_from(sorted(GGML_TYPES)))
        rows, *rest = draw(SHAPES) or [1]
        found[name] = (kind, (rows * GGML_TYPES[kind][1], *rest[:2]))
    return found


def safetensors_file(model, order=None):
    header, at = {"__metadata__": {"format": "pt", "note": 'a "quoted": {'}}, 0
    for name, (dtype, shape) in model.items():
        size = _BITS[dtype] // 8 * math.prod(shape)
        header[name] = entry(dtype, shape, at, at + size)
        at += size
    return safetensors({name: header[name] for name in order or header}, at)


def gguf_file(model):
    infos, at = [], 0
    for name, (kind, shape) in model.items():
        _, block, width = GGML_TYPES[kind]
        infos.append(info(name, shape, kind, at))
        at += math.prod(shape) // block * width
        at += -at % 32
    pairs = [
        pair("general.architecture", STRING, "llama"),
        pair("general.alignment", U32, 32),
        array_pair("tokens", STRING, ["a", "bc", ""]),
        array_pair("scores", F32, [1.0, 2.0]),
        array_pair("nested", ARRAY, [array(U8, [1, 2]), array(STRING, ["x"])]),
        array_pair("heads", I32, [8, 0, 8]),
    ]
    return gguf(pairs, infos, at)


def attempt(data, name, size):
    """Return the header, or the error."""
    try:
        return read(data, name, size)
    except BadHeader as error:
        return error


def survive(data, name, size=None):
    """Read a header: refused in one line, or it keeps the promises of TensorFile."""
    size = len(data) if size is None else size
    found = attempt(data, name, size)
    # The file is far smaller than some numbers in it.
    assert peak_memory(lambda: attempt(data, name, size)) < 200_000 + 100 * len(data)
    if found is None:
        return
    if isinstance(found, BadHeader):
        assert str(found).isprintable()
        assert len(str(found)) < 400
        return
    position = 0
    for tensor in found.tensors:
        assert found.data_start <= tensor.start <= tensor.end <= size
        assert tensor.start >= position
        assert tensor.elements <= 8 * tensor.size
        position = tensor.end
    assert len({tensor.name for tensor in found.tensors}) == len(found.tensors)
    if size == len(data):
        assert sum(cut(size, found)) == size


@st.composite
def damaged(draw, files):
    """Draw a file with up to four changes: bytes, numbers, cuts and repetitions."""
    data = bytearray(draw(files))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0 if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case 1:
                number = draw(st.sampled_from([0, 1, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1]))
                data[at : at + 8] = struct.pack("<Q", number)
            case 2:
                del data[at : at + draw(st.integers(1, 64))]
            case 3:
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case _:
                data[at:at] = draw(st.binary(max_size=8) | st.sampled_from([b'"', b"{", b"9" * 30]))
    return bytes(data)


@settings(deadline=None)
@given(st.data())
def test_a_valid_safetensors_file_is_read_as_it_was_written(data):
    """Whatever the names, types and shapes, and whatever the order in the header."""
    model = data.draw(safetensors_models())
    order = data.draw(st.permutations(list(model)))
    made = safetensors_file(model, ["__metadata__", *order])
    found = read(made)
    assert {t.name: (t.dtype, list(t.shape)) for t in found.tensors} == model
    assert sum(t.size for t in found.tensors) == len(made) - found.data_start
    survive(made, ST)


@settings(deadline=None)
@given(gguf_models())
def test_a_valid_gguf_file_is_read_as_it_was_written(model):
    """Whatever the names, types and shapes."""
    made = gguf_file(model)
    found = read(made, GGUF)
    expected = {name: (GGML_TYPES[kind][0], shape[::-1]) for name, (kind, shape) in model.items()}
    assert {t.name: (t.dtype, t.shape) for t in found.tensors} == expected
    assert found.metadata["heads"] == (8, 0, 8)
    survive(made, GGUF)


@settings(deadline=None, max_examples=300)
@given(damaged(safetensors_models().map(safetensors_file)))
def test_a_damaged_safetensors_file_is_read_or_refused(data):
    """Nothing but BadHeader is ever raised, and no number in it is trusted with memory."""
    survive(data, ST)
    survive(data, ST, 1 << 60)


@settings(deadline=None, max_examples=300)
@given(damaged(gguf_models().map(gguf_file)))
def test_a_damaged_gguf_file_is_read_or_refused(data):
    """Nothing but BadHeader is ever raised, and no number in it is trusted with memory."""
    survive(data, GGUF)
    survive(data, GGUF, 1 << 40)


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([ST, GGUF]))
def test_arbitrary_bytes_are_refused(data, name):
    """With a plausible start or without."""
    survive(data, name)
    survive(struct.pack("<Q", len(data) + 1) + b"{" + data, ST)
    survive(b"GGUF\3\0\0\0" + data, GGUF)
