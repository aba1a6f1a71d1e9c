"""Which format a file is in, by its name and its first bytes."""

from typing import BinaryIO, Final

from modelpack.formats import gguf, safetensors
from modelpack.formats.fields import DOWNLOAD
from modelpack.spec.errors import BadHeader
from modelpack.spec.tensors import TensorFile

_LFS: Final = b"version https://git-lfs.github.com/spec/v1"
_FUTURE: Final = 256  # a version from here on is damage, not progress


def read_header(file: BinaryIO, size: int, name: str) -> TensorFile | None:
    """Read the header of a weight file of `size` bytes; None for files that are taken as they are.

    These are all files of other names, and GGUF in versions and byte orders that `gguf` does not
    read. The file is read from its start, and left anywhere.

    Raises BadHeader for a file that is named like a weight file but is not a whole one: an
    incomplete download must not be published.
    """
    suffix = name.rpartition(".")[2].lower()
    if suffix not in ("safetensors", "gguf"):
        return None
    if size == 0:
        raise BadHeader(name, "size", "the file is empty", hint=DOWNLOAD)
    file.seek(0)
    start = file.read(min(size, len(_LFS)))
    if start == _LFS:
        raise BadHeader(
            name, "content", "a Git LFS pointer, not the weights", hint="run `git lfs pull` first"
        )
    file.seek(0)
    if suffix == "safetensors":
        return safetensors.read(file, size, name)
    if start[:4] != gguf.MAGIC:
        raise BadHeader(name, "magic", f"{start[:4]!r}, expected {gguf.MAGIC!r}", hint=DOWNLOAD)
    return None if _is_foreign(start[4:8]) else gguf.read(file, size, name)


def _is_foreign(version: bytes) -> bool:
    """Whether it is a GGUF that is not read but may well be whole: older, newer, or big-endian."""
    little, big = int.from_bytes(version, "little"), int.from_bytes(version, "big")
    if len(version) < 4 or little in gguf.VERSIONS:
        return False
    return 0 < little < _FUTURE or 0 < big < _FUTURE
