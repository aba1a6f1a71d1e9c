"""The body of an upload, cut and counted while it goes out."""

from collections.abc import Iterator

from modelpack.spec.errors import ProtocolViolation
from modelpack.spec.limits import KIB
from modelpack.spec.progress import Progress
from modelpack.spec.source import Content

_PIECE = 64 * KIB  # a socket's timeout is for a whole piece: a slow uplink must manage one


class Told:
    """How far a progress believes that a blob has travelled."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._position = 0

    def advance(self, length: int) -> None:
        """So many more bytes went out."""
        self._position += length
        self._progress.advance(length)

    def rewind(self, offset: int) -> None:
        """The registry has this many: what was counted beyond them will be counted again."""
        if offset < self._position:
            self._progress.advance(offset - self._position)
        elif offset > self._position:
            # An earlier run sent these; they do not travel now.
            self._progress.expect(self._position - offset)
        self._position = offset


def body(content: Content, start: int, end: int, told: Told) -> Iterator[bytes | memoryview]:
    """Yield the bytes from `start` to `end`; raises ProtocolViolation if there are fewer."""
    left = end - start
    for part in content.read_from(start) if left else ():
        view = memoryview(part)[:left]
        for at in range(0, len(view), _PIECE):
            piece = view[at : at + _PIECE]
            yield piece
            told.advance(len(piece))
        left -= len(view)
        if not left:
            return
    if left:
        raise ProtocolViolation(f"{content.blob.digest}: the content ended {left} bytes early")
