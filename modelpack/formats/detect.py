"""Which format a file is in, by its name and its first bytes."""

from typing import BinaryIO, Final

from modelpack.formats import gguf, safetensors
from modelpack.spec.errors import BadHeader
from modelpack.spec.tensors import TensorFile

_LFS: Final = b"version https://git-lfs.github.com/spec/v1"


def read_header(file: BinaryIO, size: int, name: str) -> TensorFile | None:
    """Read the header of a weight file; None for files that are taken as they are.

    Raises BadHeader for a file that is named like a weight file but is not a whole one: an
    incomplete download must not be published.
    """
    suffix = name.rpartition(".")[2].lower()
    if suffix not in ("safetensors", "gguf") or size == 0:
        return None
    start = file.read(min(size, len(_LFS)))
    if start == _LFS:
        raise BadHeader(
            name, "content", "a Git LFS pointer, not the weights", hint="run `git lfs pull` first"
        )
    file.seek(0)
    if suffix == "safetensors":
        return safetensors.read(file, size, name)
    if start[:4] != gguf.MAGIC:
        raise BadHeader(
            name,
            "magic",
            f"{start[:4]!r}, expected b'GGUF'",
            hint="download it again, or exclude it",
        )
    return None if _is_foreign(start) else gguf.read(file, size, name)


def _is_foreign(start: bytes) -> bool:
    """Whether it is a legal GGUF that is not parsed: version 1, or big-endian."""
    if len(start) < 8:
        return False
    version = int.from_bytes(start[4:8], "little")
    return version == 1 or version & 0xFFFF == 0
