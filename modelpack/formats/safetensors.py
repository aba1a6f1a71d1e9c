"""The safetensors header (https://github.com/huggingface/safetensors, README, "Format").

Eight bytes: length N of the header, little-endian; N bytes of JSON: name -> dtype, shape,
data_offsets; then the tensors, which cover the rest of the file without holes.

At least as strict as the Rust library, which also takes leading whitespace, fields that the format
does not have, and of two equal keys the last. One thing is laxer: a dtype that is not known yet is
accepted, as long as its bytes are where the format wants them.
"""

import re
import struct
import sys
from typing import Annotated, BinaryIO, Final, TypeVar

import msgspec

from modelpack.formats.fields import DOWNLOAD
from modelpack.formats.json_keys import count_keys, repeated_object
from modelpack.spec import limits
from modelpack.spec.errors import BadHeader
from modelpack.spec.tensors import Tensor, TensorFile

_METADATA: Final = "__metadata__"
_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_DTYPE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,31}", re.ASCII)
_MAX_KEYS: Final = 4_000_000  # a million tensors; the largest models have 100,000 in all shards
_MAX_ENTRY_BYTES: Final = 64 * limits.KIB
_MAX_SIZE: Final = 1 << 62  # bytes of a tensor, and each number that describes one

_T = TypeVar("_T")
_Size = Annotated[int, msgspec.Meta(ge=0, le=_MAX_SIZE)]
_Shape = Annotated[list[_Size], msgspec.Meta(max_length=64)]  # what torch and numpy can hold


class _Entry(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    dtype: str
    shape: _Shape
    data_offsets: tuple[_Size, _Size]


_TOP: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRINGS: Final = msgspec.json.Decoder(dict[str, str])
_ENTRY: Final = msgspec.json.Decoder(_Entry)


def read(file: BinaryIO, size: int, name: str) -> TensorFile:
    """Read the header of a file of `size` bytes; `name` is for errors. Raises BadHeader.

    Memory is at most about ten times the length of the header, time is linear in it.
    """
    text = _text(file, size, name)
    data_start = 8 + len(text)
    entries = _decode(_TOP, text, "header", name)
    raw_metadata = entries.pop(_METADATA, None)
    metadata = {} if raw_metadata is None else _decode(_STRINGS, raw_metadata, _METADATA, name)
    tensors = [_tensor(key, raw, data_start, name) for key, raw in entries.items()]
    distinct = (raw_metadata is not None) + len(metadata) + 4 * len(tensors)
    if count_keys(text) != distinct:
        what = repeated_object(text)
        problem = "a field of a tensor or of __metadata__" if what is None else repr(what[:80])
        raise BadHeader(name, "header", f"{problem} is given twice", hint=DOWNLOAD)
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end, tensor.name))
    _check_cover(tensors, data_start, size, name)
    return TensorFile("safetensors", data_start, tuple(tensors), dict(metadata))


def _text(file: BinaryIO, size: int, name: str) -> bytes:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise BadHeader(name, "header length", f"the file has only {size} bytes", hint=DOWNLOAD)
    (length,) = struct.unpack("<Q", prefix)
    if length > limits.HEADER_BYTES:
        raise BadHeader(
            name, "header length", f"{length} bytes; at most {limits.HEADER_BYTES}", hint=DOWNLOAD
        )
    if length > size - 8:
        raise BadHeader(
            name, "header length", f"{length} bytes, in a file of {size}", hint=DOWNLOAD
        )
    text = file.read(length)
    if len(text) < length:
        raise BadHeader(name, "header", "ends too early", hint=DOWNLOAD)
    if not text.startswith(b"{"):
        raise BadHeader(name, "header", "does not start with '{'", hint=DOWNLOAD)
    # Every key has a colon: too many are known before the first one costs memory.
    if text.count(b":") > _MAX_KEYS:
        raise BadHeader(name, "header", f"more than {_MAX_KEYS} keys", hint=DOWNLOAD)
    return text


def _decode(
    decoder: "msgspec.json.Decoder[_T]", data: bytes | msgspec.Raw, field: str, name: str
) -> _T:
    try:
        return decoder.decode(data)
    except UnicodeDecodeError:
        raise BadHeader(name, field, "not UTF-8", hint=DOWNLOAD) from None
    except RecursionError:
        raise BadHeader(name, field, "nested too deeply", hint=DOWNLOAD) from None
    except msgspec.DecodeError as error:
        # The message may quote a key.
        reason = "".join(c if c.isprintable() else "?" for c in str(error)[:160])
        raise BadHeader(name, field, reason, hint=DOWNLOAD) from error


def _tensor(key: str, raw: msgspec.Raw, data_start: int, name: str) -> Tensor:
    field = f"tensor {key[:80]!r}"
    if memoryview(raw).nbytes > _MAX_ENTRY_BYTES:
        raise BadHeader(
            name, field, f"described in more than {_MAX_ENTRY_BYTES} bytes", hint=DOWNLOAD
        )
    entry = _decode(_ENTRY, raw, field, name)
    begin, end = entry.data_offsets
    if begin > end:
        raise BadHeader(
            name, f"{field}: data_offsets", f"[{begin}, {end}] is not a range", hint=DOWNLOAD
        )
    _check_size(entry, end - begin, field, name)
    return Tensor(
        key, sys.intern(entry.dtype), tuple(entry.shape), data_start + begin, data_start + end
    )


def _check_size(entry: _Entry, size: int, field: str, name: str) -> None:
    """Check that dtype and shape give `size` bytes."""
    bits = _BITS.get(entry.dtype)
    if bits is None and not _DTYPE.fullmatch(entry.dtype):
        raise BadHeader(name, f"{field}: dtype", f"{entry.dtype[:40]!r} is not one", hint=DOWNLOAD)
    total = bits or 1
    for dimension in entry.shape:
        total *= dimension
        if total > 8 * _MAX_SIZE:
            raise BadHeader(
                name, f"{field}: shape", f"{entry.shape[:8]} is too large", hint=DOWNLOAD
            )
    # A type that is not known has at least a bit for each element: the number of parameters is
    # bounded by the size of the file.
    if total > 8 * size or (bits is not None and total != 8 * size):
        least = "" if bits else "at least "
        raise BadHeader(
            name, field,
            f"shape {entry.shape[:8]} of {entry.dtype} is {least}{total / 8:g} bytes, "
            f"data_offsets give {size}",
            hint=DOWNLOAD,
        )  # fmt: skip


def _check_cover(tensors: list[Tensor], data_start: int, size: int, name: str) -> None:
    """Check that the tensors, in order, cover the file from `data_start` to its end."""
    position = data_start
    for tensor in tensors:
        field = f"tensor {tensor.name[:80]!r}: data_offsets"
        if tensor.end > size:
            raise BadHeader(
                name, field, f"ends at byte {tensor.end} of a file of {size}", hint=DOWNLOAD
            )
        if tensor.start != position:
            what = "overlaps the one before" if tensor.start < position else "leaves a hole before"
            raise BadHeader(name, field, what, hint=DOWNLOAD)
        position = tensor.end
    if position != size:
        raise BadHeader(
            name, "size", f"{size - position} bytes after the last tensor", hint=DOWNLOAD
        )
