"""A strict, streaming tar reader: USTAR and PAX (POSIX.1-2001), GNU long names and sizes.

Python's tarfile trusts the archive with memory and time (a PAX header may be of any size) and
guesses where readers disagree. This one keeps one header in memory, and refuses what different
readers would understand differently: a size on a member that has none, a name given twice, global
names, sparse files. Refusals name the member and the problem; callers add which layer it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from modelpack.spec import limits
from modelpack.spec.errors import BadManifest, HostilePath, LimitExceeded, Unsupported
from modelpack.spec.paths import checked

BLOCK: Final = 512
_EXTENDED_BYTES: Final = limits.MIB  # one extended header; Go's limit too
_EXTENDED_TOTAL: Final = 64 * limits.MIB  # all extended headers of an archive
_HEADERS: Final = 4 * limits.FILES  # of all types: a flood of empty ones costs time
_SIZE: Final = 1 << 63
_DIGITS: Final = frozenset(b"01234567")

MemberKind = Literal["file", "directory", "symlink", "hardlink"]
_KINDS: Final[dict[bytes, MemberKind]] = {
    b"0": "file", b"\0": "file", b"7": "file",
    b"1": "hardlink", b"2": "symlink", b"5": "directory",
}  # fmt: skip
_SPECIAL: Final = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO"}
_UNREAD: Final = {b"S": "a sparse file", b"M": "a part of a multi-volume archive"}
_LONG: Final = {b"L": "path", b"K": "linkpath"}


class TarInput(Protocol):
    """The bytes of an archive, in order."""

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes; fewer only at the end."""

    def copy(self, size: int, fd: int, /) -> int:
        """Append `size` bytes to a file; returns how many there were, fewer only at the end."""

    def skip(self, size: int, /) -> int:
        """Drop `size` bytes; returns how many there were, fewer only at the end."""

    def require(self, size: int, /) -> None:
        """Raise BadManifest or LimitExceeded if `size` more bytes can never come."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. `path` is relative and checked; empty only for the root directory.

    `size` in bytes, of files only. `target` is the text of a symlink, unchecked, or the checked
    path of what a hard link stands for.
    """

    path: str
    kind: MemberKind
    size: int = 0
    target: str = ""


@dataclass(slots=True)
class _Extended:
    """What extended headers say of the next member."""

    texts: dict[str, bytes] = field(default_factory=dict)
    size: int | None = None


class TarReader:
    """Iterates over the members of one archive, in order; what follows its end is not read.

    Raises HostilePath for paths and members that must not be created, BadManifest for what is not
    a tar or ends early, LimitExceeded, Unsupported.
    """

    def __init__(self, source: TarInput) -> None:
        self._source = source
        self._payload = 0  # bytes of the current member that were not read yet
        self._padding = 0
        self._headers = 0
        self._extended_bytes = 0

    def __iter__(self) -> Iterator[Member]:
        extended = _Extended()
        while block := self._next_header():
            kind = block[156:157]
            if kind in _LONG or kind in (b"x", b"g"):
                self._extend(extended, kind, self._extended_body(block))
                continue
            member = _member(block, extended)
            extended = _Extended()
            self._source.require(member.size)
            self._payload, self._padding = member.size, -member.size % BLOCK
            yield member
        if extended != _Extended():
            raise BadManifest("tar ends after an extended header")

    def copy(self, fd: int) -> None:
        """Append the payload of the current member to a file; once per member."""
        size, self._payload = self._payload, 0
        if self._source.copy(size, fd) != size:
            raise BadManifest("tar ends in the middle of a file")

    def _next_header(self) -> bytes | None:
        rest = self._payload + self._padding
        if self._source.skip(rest) != rest:
            raise BadManifest("tar ends in the middle of a file")
        self._payload = self._padding = 0
        block = self._source.read(BLOCK)
        if not any(block):
            # One zero block at the very end is tolerated, as in Go; other data after it is not.
            if not block or any(self._source.read(BLOCK)):
                raise BadManifest("tar does not end with two zero blocks: it is cut off or damaged")
            return None
        self._headers += 1
        if self._headers > _HEADERS:
            raise LimitExceeded(f"tar has more than {_HEADERS} headers")
        _check(block)
        return block

    def _extended_body(self, block: bytes) -> bytes:
        size = _number(block[124:136], "size")
        self._extended_bytes += size
        if size > _EXTENDED_BYTES or self._extended_bytes > _EXTENDED_TOTAL:
            raise LimitExceeded(
                f"tar has extended headers of {max(size, self._extended_bytes)} bytes; at most "
                f"{_EXTENDED_BYTES} each and {_EXTENDED_TOTAL} in all"
            )
        data = self._source.read(size + -size % BLOCK)
        if len(data) < size:
            raise BadManifest("tar ends in the middle of an extended header")
        return data[:size]

    def _extend(self, extended: _Extended, kind: bytes, body: bytes) -> None:
        records = [(_LONG[kind], _text(body))] if kind in _LONG else list(_pax_records(body))
        for key, value in dict(records).items():
            if key.startswith("GNU.sparse."):
                raise Unsupported("tar holds a sparse file")
            if key not in ("path", "linkpath", "size") or not value:
                continue  # an empty value takes back what a global header said
            if kind == b"g":
                raise BadManifest(f"tar has a global {key!r}: readers disagree on what it means")
            if key in extended.texts or (key == "size" and extended.size is not None):
                raise BadManifest(f"tar gives {key!r} of one member twice")
            if key == "size":
                extended.size = _decimal(value)
            else:
                extended.texts[key] = value


def _member(block: bytes, extended: _Extended) -> Member:
    raw = extended.texts.get("path") or _ustar_path(block)
    shown = _shown(raw)
    flag = block[156:157]
    if flag in _SPECIAL:
        raise HostilePath(f"{shown} is {_SPECIAL[flag]}")
    kind = _KINDS.get(flag)
    if kind is None:
        raise Unsupported(f"{shown} is {_UNREAD.get(flag, f'a member of unknown type {flag!r}')}")
    if flag == b"\0" and raw.endswith(b"/"):
        kind = "directory"  # as archives before POSIX said it
    path = _path(raw)
    if kind == "directory":
        size = _header_size(block, extended)
    elif not path or raw.endswith(b"/"):
        raise HostilePath(f"{shown} is a {kind} with the name of a directory")
    else:
        size = _header_size(block, extended)
    if kind != "file" and size:
        raise BadManifest(f"{shown} is a {kind}, but has a size")
    if kind in ("file", "directory"):
        return Member(path, kind, size)
    target = extended.texts.get("linkpath") or _text(block[157:257])
    if kind == "hardlink":
        return Member(path, kind, target=_path(target))
    try:
        return Member(path, kind, target=target.decode())
    except UnicodeDecodeError:
        raise HostilePath(f"{shown} links to a path that is not UTF-8") from None


def _header_size(block: bytes, extended: _Extended) -> int:
    return _number(block[124:136], "size") if extended.size is None else extended.size


def _check(block: bytes) -> None:
    """Raise BadManifest unless the block is a header: whole, and with the right checksum."""
    if len(block) < BLOCK:
        raise BadManifest("tar ends in the middle of a header")
    fields = block[:148] + b" " * 8 + block[156:]
    # Some old writers summed signed characters; both are accepted, as POSIX asks.
    signed = sum(fields) - 256 * sum(byte > 127 for byte in fields)
    if _number(block[148:156], "checksum") not in (sum(fields), signed):
        raise BadManifest("tar header has a wrong checksum: this is not a tar, or it is damaged")


def _ustar_path(block: bytes) -> bytes:
    name, prefix = _text(block[:100]), _text(block[345:500])
    # In GNU's own format other fields are where USTAR has the prefix.
    if block[257:265] == b"ustar\00000" and prefix:
        return prefix + b"/" + name
    return name


def _path(raw: bytes) -> str:
    """Return a checked path; `.` and doubled slashes are dropped, and `..` is not resolved."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise HostilePath(f"path {_shown(raw)} is not UTF-8") from None
    if text.startswith("/"):
        raise HostilePath(f"path {_shown(raw)} is absolute")
    path = "/".join(part for part in text.split("/") if part not in ("", "."))
    return checked(path) if path else ""


def _pax_records(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield key and value of each "LENGTH KEY=VALUE" line; raises BadManifest."""
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        digits = body[at:space] if space > at else b""
        end = at + int(digits) if digits.isdigit() else 0
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or end > len(body) or body[end - 1] != 0x0A or not equals:
            raise BadManifest("tar has an extended header that is not made of records")
        yield key.decode("utf-8", "replace"), value
        at = end


def _number(raw: bytes, what: str) -> int:
    """Read an octal field, or GNU's base-256 one; raises BadManifest."""
    if raw[0] & 0x80:
        if raw[0] & 0x40:
            raise BadManifest(f"tar header has a negative {what}")
        return _bounded(int.from_bytes(raw, "big") - (0x80 << 8 * (len(raw) - 1)), what)
    digits = raw.strip(b" \0")
    # int() would take underscores and signs.
    if not _DIGITS.issuperset(digits):
        raise BadManifest(f"tar header has a {what} that is not a number: {raw!r}")
    return _bounded(int(digits or b"0", 8), what)


def _decimal(raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > 19:
        raise BadManifest(f"tar has an extended header with the size {raw[:40]!r}")
    return _bounded(int(raw), "size")


def _bounded(number: int, what: str) -> int:
    if number >= _SIZE:
        raise BadManifest(f"tar header has an impossible {what}: {number}")
    return number


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _shown(raw: bytes) -> str:
    text = raw[:80].decode("utf-8", "replace")
    return repr(text if len(raw) <= 80 else text + "...")
