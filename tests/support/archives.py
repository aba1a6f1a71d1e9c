"""Tar archives and compressed blobs, made byte by byte so that they can lie."""

import gzip
import struct
from pathlib import Path

import zstandard

from modelpack.checkout.tree import StagedFile, StagedTree
from modelpack.checkout.unpack import unpack
from modelpack.spec.progress import QUIET, Progress

BLOCK = 512
END = bytes(2 * BLOCK)
TAR = "application/vnd.oci.image.layer.v1.tar"
GZIP = f"{TAR}+gzip"
ZSTD = f"{TAR}+zstd"


def header(
    name: bytes | str,
    size: int | bytes = 0,
    kind: bytes = b"0",
    link: bytes | str = b"",
    *,
    magic: bytes = b"ustar\00000",
    prefix: bytes = b"",
    mode: bytes = b"0000644\0",
    checksum: bytes | None = None,
) -> bytes:
    """Return one header block; a size or checksum given as bytes is written as it is."""
    name, link = (n.encode() if isinstance(n, str) else n for n in (name, link))
    digits = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(BLOCK)
    block[:100] = name.ljust(100, b"\0")
    block[100:124] = mode + b"0000000\0" * 2
    block[124:136] = digits.ljust(12, b"\0")
    block[136:156] = b"00000000000\0" + b" " * 8
    block[156:157] = kind
    block[157:257] = link.ljust(100, b"\0")
    block[257:265] = magic
    block[345:500] = prefix.ljust(155, b"\0")
    block[148:156] = b"%06o\0 " % sum(block) if checksum is None else checksum
    return bytes(block)


def pad(data: bytes) -> bytes:
    """Fill up to a block."""
    return data + bytes(-len(data) % BLOCK)


def file(name: bytes | str, data: bytes = b"", **fields: object) -> bytes:
    """Return a regular file: header and payload."""
    return header(name, len(data), **fields) + pad(data)  # type: ignore[arg-type]


def link(name: bytes | str, target: bytes | str) -> bytes:
    """Return a symbolic link."""
    return header(name, kind=b"2", link=target)


def hardlink(name: bytes | str, target: bytes | str) -> bytes:
    """Return a hard link."""
    return header(name, kind=b"1", link=target)


def directory(name: bytes | str) -> bytes:
    """Return a directory."""
    return header(name, kind=b"5")


def record(key: str, value: bytes) -> bytes:
    """Return one PAX record."""
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def extended(body: bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header with this body."""
    return file("PaxHeaders/x", body, kind=kind)


def pax(**records: bytes) -> bytes:
    """Return a PAX header of the next member."""
    return extended(b"".join(record(key, value) for key, value in records.items()))


def archive(*parts: bytes) -> bytes:
    """Return a whole archive."""
    return b"".join(parts) + END


def gz(data: bytes) -> bytes:
    """Return one gzip member."""
    return gzip.compress(data, 1, mtime=0)


def zst(data: bytes) -> bytes:
    """Return one zstd frame."""
    return zstandard.ZstdCompressor(level=1).compress(data)


def skippable(size: int, number: int = 0) -> bytes:
    """Return a skippable zstd frame (RFC 8878, section 3.1.2)."""
    return struct.pack("<II", 0x184D2A50 + number, size) + bytes(size)


class Layers:
    """Unpacks layers one after the other into a tree below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staged = root / "staged"
        self.staged.mkdir()
        self.tree = StagedTree(self.staged)

    def add(self, blob: bytes, media_type: str = TAR, progress: Progress = QUIET) -> "Layers":
        """Unpack one more layer."""
        path = self.root / "blob"
        path.write_bytes(blob)
        self.add_file(path, media_type, progress)
        return self

    def add_file(self, path: Path, media_type: str, progress: Progress = QUIET) -> None:
        """Unpack one more layer from a file."""
        with path.open("rb") as blob:
            unpack(blob, media_type, self.tree, layer="sha256:abc", progress=progress)

    def contents(self) -> dict[str, bytes | str]:
        """Return the bytes of files and the targets of links (with an arrow), by path."""
        return {
            path: entry.file.read_bytes() if isinstance(entry, StagedFile) else f"-> {entry.target}"
            for path, entry in self.tree.checked().items()
        }
