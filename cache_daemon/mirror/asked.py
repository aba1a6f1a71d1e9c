"""What a runtime asks a mirror for: pure functions over a request."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelpack.spec.errors import BadReference
from modelpack.spec.reference import Reference

_PATH: Final = re.compile(r"/v2/(.{1,300})/(manifests|blobs)/([A-Za-z0-9_][A-Za-z0-9._:+-]{0,200})")
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class Asked:
    """One manifest or blob of one repository. `target` is a tag or a digest."""

    registry: str
    repository: str
    kind: str  # manifests or blobs
    target: str

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def by_digest(self) -> bool:
        """Whether the target is a digest."""
        return ":" in self.target


def parse(path: str, namespace: str, mirrored: Sequence[str]) -> Asked | None:
    """Read a request; None unless it is for a manifest or blob of a mirrored repository.

    The registry is what containerd says with `?ns=`, or the first part of the path, as podman and
    CRI-O put it there. `mirrored` are `host[:port]` or `host[:port]/prefix`.
    """
    found = _PATH.fullmatch(path)
    if not found:
        return None
    name, kind, target = found.groups()
    separator = "@" if ":" in target else ":"
    try:
        host = f"{namespace}/" if namespace else ""
        reference = Reference.parse(f"{host}{name}{separator}{target}")
    except BadReference:
        return None
    if kind == "blobs" and not reference.digest:
        return None
    # "docker.io/library/x" is what "x" means; a mirror is asked for what was written.
    if not any(_covers(entry, reference.name) for entry in mirrored):
        return None
    return Asked(reference.registry, reference.repository, kind, target)


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Return offset and length of what a Range header asks for (RFC 9110, section 14).

    None where it must be ignored: no range, several, another unit. Raises ValueError for one that
    cannot be satisfied.
    """
    found = _RANGE.fullmatch(header.strip())
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        if not length:
            raise ValueError(header)
        return size - length, length
    first = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    if found[2] and int(found[2]) < first:
        return None
    if first >= size:
        raise ValueError(header)
    return first, last - first + 1


def _covers(entry: str, name: str) -> bool:
    return name == entry or name.startswith(f"{entry}/")
