"""Digests: the algorithm, its hex text, and incremental hashers.

SHA-256 names blobs (OCI image-spec, descriptor.md); BLAKE3-256 names chunks by default.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, Self

from blake3 import blake3

from modelpack.spec.errors import BadReference

_TEXT: Final = re.compile(r"(sha256|sha512|blake3):([0-9a-f]{64}|[0-9a-f]{128})")
_HEX_LENGTH: Final = {"sha256": 64, "blake3": 64, "sha512": 128}


class Hasher(Protocol):
    """Incremental hashing, as in hashlib."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object:
        """Hash more bytes."""

    def digest(self) -> bytes:
        """Return the digest of everything so far."""

    def hexdigest(self) -> str:
        """Return the digest of everything so far, as hex."""


# One thread each: callers parallelise over chunks and layers, nested pools only fight.
CHUNK_HASHERS: Final[dict[str, Callable[[], Hasher]]] = {
    "blake3": blake3,
    "sha256": hashlib.sha256,
}
_HASHERS: Final[dict[str, Callable[[], Hasher]]] = {**CHUNK_HASHERS, "sha512": hashlib.sha512}


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """`algorithm:hex`, checked when made."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `algorithm:hex`; raises BadReference."""
        match = _TEXT.fullmatch(text)
        if match is None or len(match[2]) != _HEX_LENGTH[match[1]]:
            raise BadReference(
                f"{text[:100]!r} is not a digest; expected sha256:<64 lower-case hex digits>"
            )
        return cls(match[1], match[2])

    @classmethod
    def of(cls, data: bytes | memoryview, algorithm: str = "sha256") -> Self:
        """Digest `data`."""
        hasher = _HASHERS[algorithm]()
        hasher.update(data)
        return cls(algorithm, hasher.hexdigest())

    def hasher(self) -> Hasher:
        """Return a fresh hasher of this digest's algorithm."""
        return _HASHERS[self.algorithm]()

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
