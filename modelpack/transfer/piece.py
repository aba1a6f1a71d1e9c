"""The units of transfer: a piece is one request, its parts are the chunks that it brings."""

from dataclasses import dataclass
from typing import Protocol

from modelpack.spec.manifest import Descriptor


@dataclass(frozen=True, slots=True)
class Part:
    """One run of bytes in a piece and where it belongs.

    `digest` is that of the decoded bytes; empty where only the whole blob has one. Offsets and
    lengths in bytes; `stored_*` are about the blob, the others about the file.
    """

    number: int
    digest: bytes
    stored_offset: int
    stored_length: int
    file: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One request: `length` bytes of `blob` from `offset`. Parts ascend and do not overlap."""

    blob: Descriptor
    offset: int
    length: int
    parts: tuple[Part, ...]

    @property
    def whole(self) -> bool:
        """Whether it asks for all of its blob, which works without range support."""
        return self.offset == 0 and self.length == self.blob.size


class Sink(Protocol):
    """Where parts go. Called from many threads; a part belongs to one thread."""

    def write(self, file: int, offset: int, data: bytes | memoryview) -> None:
        """Put bytes in place; they count for nothing yet. Raises DiskError."""

    def complete(self, part: Part) -> None:
        """All bytes of the part are written and have its digest: it counts from now on."""
