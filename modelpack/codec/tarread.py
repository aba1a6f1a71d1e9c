"""A strict, streaming tar reader.

Python's tarfile trusts the archive with memory and time (a PAX header may be of any size). This one
holds one header in memory, whatever the archive says.
"""

from collections.abc import Iterator
from typing import Final, Protocol

from modelpack.codec import tarheader
from modelpack.codec.tarheader import BLOCK, EXTENDED, Extended, Member
from modelpack.spec import limits
from modelpack.spec.errors import BadManifest, LimitExceeded

EXTENDED_BYTES: Final = limits.MIB  # one extended header; Go's limit too
EXTENDED_TOTAL: Final = 64 * limits.MIB  # all extended headers of an archive
HEADERS: Final = 4 * limits.FILES  # of all types: a flood of empty ones costs time
_CUT_OFF: Final = "tar ends in the middle of a file: it is cut off"


class TarInput(Protocol):
    """The bytes of an archive, in order."""

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes; fewer only at the end."""

    def copy(self, size: int, fd: int, /) -> int:
        """Write `size` bytes to a file; returns how many there were, fewer only at the end."""

    def skip(self, size: int, /) -> int:
        """Drop `size` bytes; returns how many there were, fewer only at the end."""

    def require(self, size: int, /) -> None:
        """Raise BadManifest or LimitExceeded if `size` more bytes can never come."""


class TarReader:
    """Iterates over the members of one archive, in order; what follows its end is not read.

    Raises HostilePath for paths and members that must not be created, BadManifest for what is not
    a tar or is cut off, LimitExceeded, Unsupported.
    """

    def __init__(self, source: TarInput) -> None:
        self._source = source
        self._payload = 0  # bytes of the current member that were not read yet
        self._padding = 0
        self._headers = 0
        self._extended_bytes = 0

    def __iter__(self) -> Iterator[Member]:
        extended = Extended()
        while block := self._next_header():
            if block[156] in EXTENDED:
                extended.add(block[156:157], self._extended_body(block))
                continue
            member = tarheader.member(block, extended)
            extended = Extended()
            self._source.require(member.size)
            self._payload, self._padding = member.size, -member.size % BLOCK
            yield member

    def copy(self, fd: int) -> None:
        """Write the payload of the current member to a file; once per member."""
        size, self._payload = self._payload, 0
        if self._source.copy(size, fd) != size:
            raise BadManifest(_CUT_OFF)

    def _next_header(self) -> bytes | None:
        rest = self._payload + self._padding
        if self._source.skip(rest) != rest:
            raise BadManifest(_CUT_OFF)
        self._payload = self._padding = 0
        block = self._source.read(BLOCK)
        if not any(block):
            # One zero block at the very end is tolerated, as in Go; data after it is not.
            if not block or any(self._source.read(BLOCK)):
                raise BadManifest("tar does not end with two zero blocks: it is cut off or damaged")
            return None
        self._headers += 1
        if self._headers > HEADERS:
            raise LimitExceeded(f"tar has more than {HEADERS} headers")
        tarheader.check(block)
        return block

    def _extended_body(self, block: bytes) -> bytes:
        size = tarheader.number(block[124:136], "size")
        self._extended_bytes += size
        if size > EXTENDED_BYTES or self._extended_bytes > EXTENDED_TOTAL:
            raise LimitExceeded(
                f"tar has extended headers of {max(size, self._extended_bytes)} bytes; at most "
                f"{EXTENDED_BYTES} each and {EXTENDED_TOTAL} in all"
            )
        data = self._source.read(size + -size % BLOCK)
        if len(data) < size:
            raise BadManifest("tar ends in the middle of an extended header: it is cut off")
        return data[:size]
