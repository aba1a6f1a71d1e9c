"""The GGUF header, versions 2 and 3 (https://github.com/ggml-org/ggml, docs/gguf.md)."""

import struct
from typing import BinaryIO, Final

from modelpack.formats.ggml_types import GGML_TYPES
from modelpack.spec import limits
from modelpack.spec.errors import BadHeader
from modelpack.spec.tensors import Tensor, TensorFile

MAGIC: Final = b"GGUF"
_DOWNLOAD: Final = "download the file again, or exclude it"
_MAX_TENSORS: Final = 1_000_000
_MAX_KEYS: Final = 100_000
_MAX_KEY_BYTES: Final = 65_535
_MAX_DIMENSIONS: Final = 8
_KEPT_STRING: Final = 4_096  # longer ones are templates and licences
_MAX_DEPTH: Final = 4
_SCALARS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_ALIGNMENT_KEY: Final = "general.alignment"


def read(file: BinaryIO, size: int, name: str) -> TensorFile:
    """Read the header of a file of `size` bytes; `name` is for errors. Raises BadHeader."""
    reader = _Reader(file, min(size, limits.HEADER_BYTES), name)
    reader.take(len(MAGIC), "magic")
    version = reader.number("<I", "version")
    if version not in (2, 3):
        raise BadHeader(name, "version", f"{version}; versions 2 and 3 can be read")
    tensor_count = reader.count("<Q", "tensor count", _MAX_TENSORS, least=24)
    key_count = reader.count("<Q", "metadata count", _MAX_KEYS, least=13)
    metadata = _metadata(reader, key_count)
    alignment = metadata.get(_ALIGNMENT_KEY, 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= limits.MIB or alignment % 8:
        raise BadHeader(name, _ALIGNMENT_KEY, f"{alignment!r} is not a multiple of 8")
    found = [_tensor(reader, alignment) for _ in range(tensor_count)]
    data_start = reader.position + -reader.position % alignment
    tensors = [
        Tensor(key, dtype, shape, data_start + offset, data_start + offset + length)
        for key, dtype, shape, offset, length in found
    ]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end, tensor.name))
    _check(tensors, size, name)
    return TensorFile("gguf", min(data_start, size), tuple(tensors), metadata)


def _metadata(reader: "_Reader", count: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    seen: set[str] = set()
    for number in range(count):
        key = reader.string(f"metadata key {number}", _MAX_KEY_BYTES)
        if key in seen:
            raise BadHeader(reader.name, f"metadata key {key[:80]!r}", "is given twice")
        seen.add(key)
        value = _value(reader, reader.number("<I", key), key, 0)
        if value is not None:
            metadata[key] = value
    return metadata


def _value(reader: "_Reader", kind: int, key: str, depth: int) -> object:
    """Read a value; None for one that is not worth keeping."""
    field = f"metadata {key[:80]!r}"
    if kind in _SCALARS:
        return reader.number(_SCALARS[kind], field)
    if kind == _STRING:
        return reader.short_string(field)
    if kind != _ARRAY:
        raise BadHeader(reader.name, field, f"type {kind} is unknown")
    if depth == _MAX_DEPTH:
        raise BadHeader(reader.name, field, "arrays are nested too deeply")
    inner = reader.number("<I", field)
    width = struct.calcsize(_SCALARS[inner]) if inner in _SCALARS else 8
    length = reader.count("<Q", field, reader.limit, least=width)
    if inner in _SCALARS:
        reader.take(length * width, field)
        return None
    for _ in range(length):
        _value(reader, inner, key, depth + 1)
    return None


def _tensor(reader: "_Reader", alignment: int) -> tuple[str, str, tuple[int, ...], int, int]:
    key = reader.string("tensor name", _MAX_KEY_BYTES)
    field = f"tensor {key[:80]!r}"
    dimensions = reader.number("<I", field)
    if dimensions > _MAX_DIMENSIONS:
        raise BadHeader(reader.name, field, f"{dimensions} dimensions")
    # GGUF lists the fastest dimension first; everybody else last.
    shape = tuple(reader.number("<Q", field) for _ in range(dimensions))[::-1]
    kind = reader.number("<I", field)
    offset = reader.number("<Q", field)
    if kind not in GGML_TYPES:
        raise BadHeader(
            reader.name, field, f"type {kind} is unknown",
            hint="if it is new, upgrade modelpack-oci; or exclude the file",
        )  # fmt: skip
    dtype, block, width = GGML_TYPES[kind]
    elements = 1
    for dimension in shape:
        elements *= dimension
    if elements % block or elements > 1 << 62:
        raise BadHeader(reader.name, field, f"{elements} elements are not whole blocks of {block}")
    if offset % alignment:
        raise BadHeader(reader.name, field, f"offset {offset} is not aligned to {alignment}")
    return key, dtype, shape, offset, elements // block * width


def _check(tensors: list[Tensor], size: int, name: str) -> None:
    position = 0
    names: set[str] = set()
    for tensor in tensors:
        field = f"tensor {tensor.name[:80]!r}"
        if tensor.name in names:
            raise BadHeader(name, field, "is given twice")
        names.add(tensor.name)
        if tensor.end > size:
            raise BadHeader(
                name, field, f"ends at byte {tensor.end} of a file of {size}", hint=_DOWNLOAD
            )
        if tensor.start < position:
            raise BadHeader(name, field, "overlaps the one before")
        position = tensor.end


class _Reader:
    """Reads fields, never more than the header can hold."""

    def __init__(self, file: BinaryIO, limit: int, name: str) -> None:
        self._file = file
        self.limit = limit
        self.name = name
        self.position = 0

    def take(self, length: int, field: str) -> bytes:
        if length > self.limit - self.position:
            raise BadHeader(
                self.name, field, f"{length} bytes at byte {self.position} of {self.limit}",
                hint=_DOWNLOAD,
            )  # fmt: skip
        data = self._file.read(length)
        if len(data) < length:
            raise BadHeader(self.name, field, "the file ends here", hint=_DOWNLOAD)
        self.position += length
        return data

    def number(self, form: str, field: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form), field))[0]
        return value

    def count(self, form: str, field: str, most: int, *, least: int) -> int:
        """Read a count of things of at least `least` bytes each."""
        value = self.number(form, field)
        if value > most or value * least > self.limit - self.position:
            raise BadHeader(self.name, field, f"{value} entries do not fit", hint=_DOWNLOAD)
        return value

    def string(self, field: str, most: int) -> str:
        length = self.number("<Q", field)
        if length > most:
            raise BadHeader(self.name, field, f"a string of {length} bytes; at most {most}")
        try:
            return self.take(length, field).decode()
        except UnicodeDecodeError:
            raise BadHeader(self.name, field, "not UTF-8") from None

    def short_string(self, field: str) -> str | None:
        length = self.number("<Q", field)
        data = self.take(length, field)
        return data.decode(errors="replace") if length <= _KEPT_STRING else None
