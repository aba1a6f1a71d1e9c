"""The tar bytes around a payload: a pure function of path and size.

USTAR (POSIX.1-1988) with mtime 0, uid and gid 0, no names, mode 0644; a PAX extended header
(POSIX.1-2001) only for what USTAR cannot say: paths that are not ASCII or do not fit, and files of
8 GiB and more. Two zero blocks at the end and nothing after them: modctl hashes what its tar reader
consumed, so record padding breaks it. The rule's version is that of the artifact format; changing
one byte here changes every digest (docs/design/artifact.md, "Tar").
"""

from typing import Final

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
_USTAR_SIZE_LIMIT: Final = 8**11  # eleven octal digits
_FILE_MODE: Final = 0o644


def header(path: str, size: int) -> bytes:
    """Return the header block(s) of a regular file; `size` in bytes."""
    records = b""
    name = _split(path)
    if name is None:
        records += _record("path", path.encode())
        # Readers without PAX still need a name; it is never seen by the others.
        name = (b"", path.encode("ascii", "replace")[-100:].replace(b"/", b"_"))
    if size >= _USTAR_SIZE_LIMIT:
        records += _record("size", str(size).encode())
    extended = b""
    if records:
        extended = _block(b"", b"PaxHeader", len(records), b"x") + records + padding(len(records))
    return extended + _block(*name, size if size < _USTAR_SIZE_LIMIT else 0, b"0")


def padding(size: int) -> bytes:
    """Return the zeros that fill a payload of `size` bytes up to a block."""
    return bytes(-size % BLOCK)


def literals(files: list[tuple[str, int]]) -> list[bytes]:
    """Return the bytes before each payload, and those after the last: len(files) + 1 items."""
    result = []
    before = 0
    for path, size in files:
        result.append(padding(before) + header(path, size))
        before = size
    return [*result, padding(before) + END]


def _split(path: str) -> tuple[bytes, bytes] | None:
    """Split into USTAR prefix (<= 155 bytes) and name (<= 100), or None if that cannot be done."""
    try:
        raw = path.encode("ascii")
    except UnicodeEncodeError:
        return None
    if len(raw) <= 100:
        return b"", raw
    # The leftmost cut that leaves a name of at most 100 bytes: shortest prefix, one answer.
    cut = raw.find(b"/", len(raw) - 101)
    if cut < 1 or cut > 155 or cut == len(raw) - 1:
        return None
    return raw[:cut], raw[cut + 1 :]


def _record(key: str, value: bytes) -> bytes:
    """Return "LENGTH KEY=VALUE" and a newline, where LENGTH counts its own digits."""
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _block(prefix: bytes, name: bytes, size: int, kind: bytes) -> bytes:
    fields = (
        name.ljust(100, b"\0")
        + b"%07o\0" % _FILE_MODE
        + b"0000000\0" * 2  # uid, gid
        + b"%011o\0" % size
        + b"00000000000\0"  # mtime
        + b" " * 8  # checksum, counted as spaces
        + kind
        + bytes(100)  # link name
        + b"ustar\00000"
        + bytes(32 + 32)  # owner and group names
        + b"0000000\0" * 2  # device numbers
        + prefix.ljust(155, b"\0")
    ).ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]
