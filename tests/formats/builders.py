"""Weight files, made byte by byte so that they can lie."""

import json
import struct
import tracemalloc
from collections.abc import Callable
from io import BytesIO

from modelpack.formats.detect import read_header
from modelpack.spec.tensors import TensorFile

ST = "model.safetensors"
GGUF = "model.gguf"

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMS = "BbHhIif?  Qqd"


def read(data: bytes, name: str = ST, size: int | None = None) -> TensorFile | None:
    """Read a header from bytes."""
    return read_header(BytesIO(data), len(data) if size is None else size, name)


def safetensors(header: object, data: bytes | int = b"") -> bytes:
    """Return a file with this header: bytes as they are, anything else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + (bytes(data) if isinstance(data, int) else data)


def entry(dtype: object = "F32", shape: object = (1,), begin: object = 0, end: object = 4) -> dict:
    """Return the description of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def text(value: str | bytes) -> bytes:
    """Return a GGUF string."""
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def scalar(kind: int, value: object) -> bytes:
    """Return a GGUF value without its type."""
    return text(value) if kind == STRING else struct.pack(f"<{_FORMS[kind]}", value)


def pair(key: str | bytes, kind: int, value: object) -> bytes:
    """Return a key with a scalar or a string."""
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def array(kind: int, values: list) -> bytes:
    """Return an array value without its type; one of ARRAY takes its elements ready-made."""
    body = b"".join(value if kind == ARRAY else scalar(kind, value) for value in values)
    return struct.pack("<IQ", kind, len(values)) + body


def array_pair(key: str, kind: int, values: list) -> bytes:
    """Return a key with an array."""
    return text(key) + struct.pack("<I", ARRAY) + array(kind, values)


def info(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """Return the description of one tensor; the fastest dimension comes first."""
    numbers = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + numbers + struct.pack("<IQ", kind, offset)


def gguf(
    pairs: list[bytes] = [],  # noqa: B006 - never changed
    infos: list[bytes] = [],  # noqa: B006
    data: int = 0,
    *,
    alignment: int = 32,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """Return a file with `data` bytes of tensors; `counts` may lie."""
    tensors, keys = counts or (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join([*pairs, *infos])
    return head + bytes(-len(head) % alignment + data)


def peak_memory(action: Callable[[], object]) -> int:
    """Return the bytes that `action` had allocated at its worst."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def short(value: object) -> str:
    """Return the part of a test's name: what is expected, not the file."""
    return value if isinstance(value, str) else ""
