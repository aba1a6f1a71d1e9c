"""Little-endian fields of a binary header that may lie about every length in it."""

import struct
from typing import BinaryIO, Final

from modelpack.spec.errors import BadHeader

DOWNLOAD: Final = "download the file again, or exclude it"
U32: Final = struct.Struct("<I")
U64: Final = struct.Struct("<Q")
_SEEK_FROM: Final = 4_096  # below it, reading is cheaper than seeking


class Fields:
    """Reads fields in order, within the first `limit` bytes of a file of `size` bytes.

    Nothing is allocated for a length before it is known to fit. Every method raises BadHeader, in
    which `name` is the file and `field` says what was being read.
    """

    def __init__(self, file: BinaryIO, size: int, limit: int, name: str) -> None:
        self._file = file
        self._end = min(size, limit)
        self._whole = "the file" if size <= limit else "the longest header accepted"
        self.name = name
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes that may still be read."""
        return self._end - self.position

    def take(self, length: int, field: str) -> bytes:
        """Read `length` bytes."""
        if length > self.left:
            raise self._beyond(length, field)
        data = self._file.read(length)
        if len(data) < length:
            raise BadHeader(self.name, field, "the file ends here", hint=DOWNLOAD)
        self.position += length
        return data

    def skip(self, length: int, field: str) -> None:
        """Pass over `length` bytes; whether they are there is only known at the next read."""
        if length > self.left:
            raise self._beyond(length, field)
        self.position += length
        self._file.seek(self.position)

    def number(self, form: struct.Struct, field: str) -> int:
        """Read one value in this form."""
        value: int = form.unpack(self.take(form.size, field))[0]
        return value

    def count(self, field: str, most: int, *, least: int) -> int:
        """Read the number of things that follow, each of at least `least` bytes."""
        value = self.number(U64, field)
        if value > most:
            raise BadHeader(self.name, field, f"{value} entries; at most {most}", hint=DOWNLOAD)
        if value * least > self.left:
            raise BadHeader(
                self.name, field, f"{value} entries do not fit in {self._whole}", hint=DOWNLOAD
            )
        return value

    def string(self, field: str, most: int) -> str:
        """Read a string of at most `most` bytes."""
        length = self.number(U64, field)
        if length > most:
            raise BadHeader(
                self.name, field, f"a string of {length} bytes; at most {most}", hint=DOWNLOAD
            )
        try:
            return self.take(length, field).decode()
        except UnicodeDecodeError:
            raise BadHeader(self.name, field, "not UTF-8", hint=DOWNLOAD) from None

    def short_string(self, field: str, most: int) -> str | None:
        """Read a string, or pass over it if it is longer than `most` bytes."""
        length = self.number(U64, field)
        if length > most:
            self.skip(length, field)
            return None
        return self.take(length, field).decode(errors="replace")

    def skip_strings(self, count: int, field: str) -> None:
        """Pass over `count` strings: vocabularies have hundreds of thousands."""
        read = self._file.read
        for _ in range(count):
            prefix = read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or 8 + length > self.left:
                raise self._beyond(8 + length, field)
            self.position += 8 + length
            if length < _SEEK_FROM:
                read(length)
            else:
                self._file.seek(self.position)

    def _beyond(self, length: int, field: str) -> BadHeader:
        return BadHeader(
            self.name, field,
            f"{length} bytes at byte {self.position} reach beyond {self._whole} ({self._end})",
            hint=DOWNLOAD,
        )  # fmt: skip
