"""Where the files of a model come from: the Protocol that a directory and a bucket fulfil."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from modelpack.spec.source import ByteStream
from modelpack.state.digests import FileKey


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to pack. `path` is its path in the artifact, `location` where its bytes are."""

    path: str
    location: str
    size: int
    key: FileKey


class Origin(Protocol):
    """A set of files that can be read. Called from many threads at once."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    def files(self) -> list[SourceFile]:
        """List all files, sorted by the bytes of their paths. Raises BadSource."""

    def open(self, file: SourceFile) -> AbstractContextManager[BinaryIO]:
        """Open for seeking and reading a header."""

    def stream(self, file: SourceFile, offset: int) -> AbstractContextManager[ByteStream]:
        """Stream the bytes from `offset` to the end, at most 1 MiB at a time.

        Raises BadSource if the file is not in the state it was listed in.
        """

    def check(self, file: SourceFile) -> None:
        """Raise BadSource if the file is no longer in the state it was listed in."""
