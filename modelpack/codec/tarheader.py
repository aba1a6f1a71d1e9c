"""What a tar header says: USTAR and PAX (POSIX.1-2001), GNU long names and sizes. Pure functions.

Refused is what different readers understand differently: a size on a member that has no content, a
name or size given twice, names for all members, sparse files. Refusals name the member and the
problem; who calls adds which layer it is in.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from modelpack.spec.errors import BadManifest, HostilePath, Unsupported
from modelpack.spec.paths import checked

BLOCK: Final = 512
EXTENDED: Final = frozenset(b"xgLK")  # types of headers that speak of the next member

_TOO_LARGE: Final = 1 << 63
_DIGITS: Final = frozenset(b"01234567")
_USTAR: Final = b"ustar\00000"

MemberKind = Literal["file", "directory", "symlink", "hardlink"]
_KINDS: Final[dict[bytes, MemberKind]] = {
    b"0": "file", b"\0": "file", b"7": "file",
    b"1": "hardlink", b"2": "symlink", b"5": "directory",
}  # fmt: skip
_SPECIAL: Final = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO"}
_UNREAD: Final = {b"S": "a sparse file", b"M": "a part of a multi-volume archive"}
_LONG: Final = {b"L": "path", b"K": "linkpath"}


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
class Extended:
    """What extended headers say of the next member."""

    texts: dict[str, bytes] = field(default_factory=dict)
    size: int | None = None

    def add(self, flag: bytes, body: bytes) -> None:
        """Take in the body of a header of type `flag`; raises BadManifest, Unsupported."""
        records = [(_LONG[flag], text(body))] if flag in _LONG else pax_records(body)
        for key, value in dict(records).items():  # within one header the last record counts
            if key.startswith("GNU.sparse."):
                raise Unsupported("tar holds a sparse file")
            if key not in ("path", "linkpath", "size") or not value:
                continue
            if flag == b"g":
                raise BadManifest(f"tar has a global {key!r}: readers disagree on what it means")
            if key in self.texts or (key == "size" and self.size is not None):
                raise BadManifest(f"tar gives the {key!r} of one member twice")
            if key == "size":
                self.size = _decimal(value)
            else:
                self.texts[key] = value


def member(block: bytes, extended: Extended) -> Member:
    """Read the header of a member.

    Raises HostilePath for paths and members that must not be created, BadManifest for
    contradictions, Unsupported.
    """
    raw = extended.texts.get("path") or _ustar_path(block)
    flag = block[156:157]
    if flag in _SPECIAL:
        raise HostilePath(f"{shown(raw)} is {_SPECIAL[flag]}")
    kind = _KINDS.get(flag)
    if kind is None:
        what = _UNREAD.get(flag, f"a member of unknown type {flag!r}")
        raise Unsupported(f"{shown(raw)} is {what}")
    if flag == b"\0" and raw.endswith(b"/"):
        kind = "directory"  # as archives before POSIX said it
    path = _path(raw)
    if kind != "directory" and (not path or raw.endswith(b"/")):
        raise HostilePath(f"{shown(raw)} is a {kind} with the name of a directory")
    size = number(block[124:136], "size") if extended.size is None else extended.size
    if kind == "file":
        return Member(path, kind, size)
    if size:
        raise BadManifest(f"{shown(raw)} is a {kind}, but has a size")
    target = extended.texts.get("linkpath") or text(block[157:257])
    if kind == "directory":
        return Member(path, kind)
    if kind == "hardlink":
        return Member(path, kind, target=_path(target))
    try:
        return Member(path, kind, target=target.decode())
    except UnicodeDecodeError:
        raise HostilePath(f"{shown(raw)} links to a path that is not UTF-8") from None


def check(block: bytes) -> None:
    """Raise BadManifest unless the block is a header: whole, and with the right checksum."""
    if len(block) < BLOCK:
        raise BadManifest("tar ends in the middle of a header")
    fields = block[:148] + b" " * 8 + block[156:]
    written = number(block[148:156], "checksum")
    # Some old writers summed signed characters; POSIX asks readers to accept both.
    if written not in (sum(fields), sum(memoryview(fields).cast("b"))):
        raise BadManifest("tar header has a wrong checksum: this is not a tar, or it is damaged")


def pax_records(body: bytes) -> Iterator[tuple[str, bytes]]:
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


def number(raw: bytes, what: str) -> int:
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


def text(raw: bytes) -> bytes:
    """Return a field up to its NUL."""
    return raw.partition(b"\0")[0]


def shown(raw: bytes) -> str:
    """Return a name as it may appear in an error."""
    return repr(raw[:80].decode("utf-8", "replace") + ("..." if len(raw) > 80 else ""))


def _ustar_path(block: bytes) -> bytes:
    name, prefix = text(block[:100]), text(block[345:500])
    # In GNU's own format other fields are where USTAR has the prefix.
    return prefix + b"/" + name if prefix and block[257:265] == _USTAR else name


def _path(raw: bytes) -> str:
    """Return a checked path; `.` and doubled slashes are dropped, and `..` is not resolved."""
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        raise HostilePath(f"path {shown(raw)} is not UTF-8") from None
    if path.startswith("/"):
        raise HostilePath(f"path {shown(raw)} is absolute")
    path = "/".join(part for part in path.split("/") if part not in ("", "."))
    return checked(path) if path else ""


def _decimal(raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > 19:
        raise BadManifest(f"tar has an extended header with the size {raw[:40]!r}")
    return _bounded(int(raw), "size")


def _bounded(value: int, what: str) -> int:
    if value >= _TOO_LARGE:
        raise BadManifest(f"tar header has an impossible {what}: {value}")
    return value
