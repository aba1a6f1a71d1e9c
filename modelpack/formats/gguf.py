"""The GGUF header, versions 2 and 3, little-endian (ggml-org/ggml, docs/gguf.md).

Magic, version, two counts; metadata as typed key-value pairs; a description of each tensor; padding
to the alignment; then the tensors, each at an aligned offset from there.
"""

from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO, Final

from modelpack.formats.fields import DOWNLOAD, U32, U64, Fields
from modelpack.formats.ggml_types import GGML_TYPES
from modelpack.spec import limits
from modelpack.spec.errors import BadHeader
from modelpack.spec.tensors import Tensor, TensorFile

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
_MAX_TENSORS: Final = 1_000_000
_MAX_KEYS: Final = 10_000  # honest ones have fifty
_MAX_KEY_BYTES: Final = 65_535  # docs/gguf.md, gguf_metadata_kv_t
_MAX_DIMENSIONS: Final = 8  # ggml has four
_MAX_ELEMENTS: Final = 1 << 60
_MAX_TYPE: Final = 1_023  # forks count up to 400
_MAX_DEPTH: Final = 4  # of arrays in arrays
_KEPT_BYTES: Final = 4_096  # longer strings are templates and licences
_KEPT_ELEMENTS: Final = 1_024  # one for each layer; longer arrays are vocabularies
_SCALARS: Final = {
    kind: Struct(f"<{form}")
    for kind, form in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_ALIGNMENT: Final = "general.alignment"


@dataclass(frozen=True, slots=True)
class _Info:
    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    offset: int
    length: int | None  # bytes; None where the type is not known


def read(file: BinaryIO, size: int, name: str) -> TensorFile:
    """Read the header of a file of `size` bytes; `name` is for errors. Raises BadHeader.

    `metadata` has the scalars, the strings of at most 4 KiB, and the arrays of at most 1024 scalars
    (as tuples): not the vocabulary. A tensor of a type that is not known is named TYPE_<number>
    and reaches to the next one. Memory is a few times the descriptions of the tensors.
    """
    fields = Fields(file, size, limits.HEADER_BYTES, name)
    fields.take(len(MAGIC), "magic")
    version = fields.number(U32, "version")
    if version not in VERSIONS:
        raise BadHeader(name, "version", f"{version}; versions 2 and 3 can be read", hint=DOWNLOAD)
    tensor_count = fields.count("tensor count", _MAX_TENSORS, least=24)
    key_count = fields.count("metadata count", _MAX_KEYS, least=13)
    metadata = _metadata(fields, key_count)
    alignment = _alignment(metadata, name)
    found = [_info(fields, alignment) for _ in range(tensor_count)]
    data_start = fields.position + -fields.position % alignment
    tensors = _place(found, data_start, size, name)
    return TensorFile("gguf", min(data_start, size), tensors, metadata)


def _metadata(fields: Fields, count: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    seen: set[str] = set()
    for number in range(count):
        key = fields.string(f"metadata key {number}", _MAX_KEY_BYTES)
        field = f"metadata {key[:80]!r}"
        if key in seen:
            raise BadHeader(fields.name, field, "is given twice", hint=DOWNLOAD)
        seen.add(key)
        value = _value(fields, fields.number(U32, field), field, 0)
        if value is not None:
            metadata[key] = value
    return metadata


def _value(fields: Fields, kind: int, field: str, depth: int) -> object:
    """Read a value; None for one that is not worth keeping."""
    if kind in _SCALARS:
        return fields.number(_SCALARS[kind], field)
    if kind == _STRING:
        return fields.short_string(field, _KEPT_BYTES)
    if kind == _ARRAY and depth < _MAX_DEPTH:
        return _array(fields, field, depth)
    problem = "nested too deeply" if kind == _ARRAY else f"type {kind} is unknown"
    raise BadHeader(fields.name, field, problem, hint=DOWNLOAD)


def _array(fields: Fields, field: str, depth: int) -> object:
    inner = fields.number(U32, field)
    if inner in _SCALARS:
        form = _SCALARS[inner]
        length = fields.count(field, limits.HEADER_BYTES, least=form.size)
        if length > _KEPT_ELEMENTS:
            fields.skip(length * form.size, field)
            return None
        data = fields.take(length * form.size, field)
        return tuple(value for (value,) in form.iter_unpack(data))
    length = fields.count(field, limits.HEADER_BYTES, least=12 if inner == _ARRAY else 8)
    if inner == _STRING:
        fields.skip_strings(length, field)
        return None
    if inner != _ARRAY:
        raise BadHeader(fields.name, field, f"type {inner} is unknown", hint=DOWNLOAD)
    for _ in range(length):
        _value(fields, _ARRAY, field, depth + 1)
    return None


def _alignment(metadata: dict[str, object], name: str) -> int:
    value = metadata.get(_ALIGNMENT, 32)
    # The document wants a multiple of 8, llama.cpp a power of two.
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not 1 <= value <= limits.MIB
        or (value % 8 and value & (value - 1))
    ):
        raise BadHeader(name, _ALIGNMENT, f"{value!r:.80} is not a multiple of 8", hint=DOWNLOAD)
    return value


def _info(fields: Fields, alignment: int) -> _Info:
    key = fields.string("tensor name", _MAX_KEY_BYTES)
    field = f"tensor {key[:80]!r}"
    dimensions = fields.number(U32, field)
    if dimensions > _MAX_DIMENSIONS:
        raise BadHeader(fields.name, field, f"{dimensions} dimensions", hint=DOWNLOAD)
    shape = tuple(fields.number(U64, field) for _ in range(dimensions))
    kind = fields.number(U32, field)
    offset = fields.number(U64, field)
    elements = 1
    for dimension in shape:
        elements *= dimension
    if elements > _MAX_ELEMENTS or max(shape, default=0) > _MAX_ELEMENTS:
        raise BadHeader(fields.name, field, f"shape {shape} is too large", hint=DOWNLOAD)
    if offset % alignment:
        raise BadHeader(
            fields.name, field, f"offset {offset} is not aligned to {alignment}", hint=DOWNLOAD
        )
    if kind > _MAX_TYPE:
        raise BadHeader(fields.name, field, f"type {kind} is unknown", hint=DOWNLOAD)
    dtype, block, width = GGML_TYPES.get(kind, (f"TYPE_{kind}", 1, None))
    if (shape[0] if shape else 1) % block:
        raise BadHeader(
            fields.name, field, f"rows of {shape[:1]} are not whole blocks of {block}",
            hint=DOWNLOAD,
        )  # fmt: skip
    length = None if width is None else elements // block * width
    # GGUF lists the fastest dimension first; everybody else last.
    return _Info(key, dtype, shape[::-1], elements, offset, length)


def _place(found: list[_Info], data_start: int, size: int, name: str) -> tuple[Tensor, ...]:
    """Put the tensors in file order, and check that they fit and do not overlap."""
    # Of tensors at one offset all but the last are empty; unknown lengths are made to be last.
    found.sort(key=lambda info: (info.offset, info.length is None, info.length or 0, info.name))
    starts = [data_start + info.offset for info in found]
    tensors = []
    names: set[str] = set()
    for info, start, following in zip(found, starts, [*starts[1:], size], strict=False):
        field = f"tensor {info.name[:80]!r}"
        if info.name in names:
            raise BadHeader(name, field, "is given twice", hint=DOWNLOAD)
        names.add(info.name)
        end = following if info.length is None else start + info.length
        if max(start, end) > size:
            raise BadHeader(
                name, field, f"ends at byte {max(start, end)} of a file of {size}", hint=DOWNLOAD
            )
        if end > following:
            raise BadHeader(name, field, "overlaps the one after it", hint=DOWNLOAD)
        # No type has less than a bit for an element.
        if info.elements > 8 * (end - start):
            raise BadHeader(name, field, f"has no room for shape {info.shape}", hint=DOWNLOAD)
        tensors.append(Tensor(info.name, info.dtype, info.shape, start, end))
    return tuple(tensors)
