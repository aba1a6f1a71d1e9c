"""The safetensors header (https://github.com/huggingface/safetensors, README, "Format").

Eight bytes: length N of the header, little-endian; N bytes of JSON: name -> dtype, shape,
data_offsets; then the tensors, which cover the rest of the file without holes.
"""

import struct
from typing import BinaryIO, Final

import msgspec

from modelpack.formats.json_keys import first_duplicate
from modelpack.spec import limits
from modelpack.spec.errors import BadHeader
from modelpack.spec.tensors import Tensor, TensorFile

_DOWNLOAD: Final = "download the file again, or exclude it"
_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_MAX_DIMENSIONS: Final = 32
_MAX_SIZE: Final = 1 << 62


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read(file: BinaryIO, size: int, name: str) -> TensorFile:
    """Read the header of a file of `size` bytes; `name` is for errors. Raises BadHeader."""
    text = _text(file, size, name)
    duplicate = first_duplicate(text)
    if duplicate is not None:
        raise BadHeader(name, "header", f"the key {duplicate[:80]!r} is given twice")
    try:
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.pop("__metadata__", b"{}"), type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadHeader(name, "header", f"not the JSON it should be: {error}") from None
    data_start = 8 + len(text)
    tensors = [_tensor(key, raw, data_start, name) for key, raw in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end, tensor.name))
    _check_cover(tensors, data_start, size, name)
    return TensorFile("safetensors", data_start, tuple(tensors), dict(metadata))


def _text(file: BinaryIO, size: int, name: str) -> bytes:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise BadHeader(name, "header length", f"the file has only {size} bytes", hint=_DOWNLOAD)
    (length,) = struct.unpack("<Q", prefix)
    if length > limits.HEADER_BYTES:
        raise BadHeader(
            name, "header length", f"{length} bytes; at most {limits.HEADER_BYTES}", hint=_DOWNLOAD
        )
    if length > size - 8:
        raise BadHeader(
            name, "header length", f"{length} bytes, in a file of {size}", hint=_DOWNLOAD
        )
    text = file.read(length)
    if len(text) < length:
        raise BadHeader(name, "header", "ends too early", hint=_DOWNLOAD)
    if not text.startswith(b"{"):
        raise BadHeader(name, "header", "does not start with '{'")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise BadHeader(name, "header", f"not UTF-8 at byte {error.start}") from None
    return text


def _tensor(key: str, raw: msgspec.Raw, data_start: int, name: str) -> Tensor:
    field = f"tensor {key[:80]!r}"
    try:
        entry = msgspec.json.decode(raw, type=_Entry)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadHeader(name, field, str(error)) from None
    begin, end = entry.data_offsets
    if not 0 <= begin <= end:
        raise BadHeader(name, f"{field}: data_offsets", f"[{begin}, {end}] is not a range")
    if len(entry.shape) > _MAX_DIMENSIONS or any(dimension < 0 for dimension in entry.shape):
        raise BadHeader(name, f"{field}: shape", f"{entry.shape[:8]} is impossible")
    bits = _BITS.get(entry.dtype)
    if bits is None:
        raise BadHeader(
            name, f"{field}: dtype", f"{entry.dtype[:40]!r} is unknown",
            hint="if it is new, upgrade modelpack-oci; or exclude the file",
        )  # fmt: skip
    total = bits
    for dimension in entry.shape:
        total *= dimension
        if total > 8 * _MAX_SIZE:
            raise BadHeader(name, f"{field}: shape", f"{entry.shape[:8]} is too large")
    if total != 8 * (end - begin):
        raise BadHeader(
            name, field,
            f"shape {entry.shape[:8]} of {entry.dtype} is {total / 8:g} bytes, "
            f"data_offsets give {end - begin}",
        )  # fmt: skip
    return Tensor(key, entry.dtype, tuple(entry.shape), data_start + begin, data_start + end)


def _check_cover(tensors: list[Tensor], data_start: int, size: int, name: str) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.end > size:
            raise BadHeader(
                name, f"tensor {tensor.name[:80]!r}: data_offsets",
                f"ends at byte {tensor.end} of a file of {size}", hint=_DOWNLOAD,
            )  # fmt: skip
        if tensor.start != position:
            what = "overlaps the one before" if tensor.start < position else "leaves a hole before"
            raise BadHeader(name, f"tensor {tensor.name[:80]!r}: data_offsets", what)
        position = tensor.end
    if position != size:
        raise BadHeader(
            name, "size", f"{size - position} bytes after the last tensor", hint=_DOWNLOAD
        )
