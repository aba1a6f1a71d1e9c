"""Paths inside an artifact: relative, slash-separated UTF-8, hostile until checked."""

from collections.abc import Iterable

from modelpack.spec import limits
from modelpack.spec.errors import HostilePath


def checked(path: str) -> str:
    """Return `path` if it may be created below a directory; raises HostilePath.

    Refused: empty, absolute, `.`/`..`/empty components, NUL, text that is not UTF-8, more than
    limits.PATH_BYTES bytes, limits.PATH_DEPTH components or limits.NAME_BYTES per component.
    """
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise HostilePath(f"path {path[:80]!r} is not UTF-8") from None
    shown = path if len(path) <= 80 else path[:77] + "..."
    if len(raw) > limits.PATH_BYTES:
        raise HostilePath(f"path {shown!r} is {len(raw)} bytes; at most {limits.PATH_BYTES}")
    if path.startswith("/"):
        raise HostilePath(f"path {shown!r} is absolute")
    parts = path.split("/")
    if len(parts) > limits.PATH_DEPTH:
        raise HostilePath(
            f"path {shown!r} is {len(parts)} levels deep; at most {limits.PATH_DEPTH}"
        )
    for part in parts:
        if part in ("", ".", "..") or "\0" in part:
            raise HostilePath(f"path {shown!r} has a component {part!r} that is not a name")
        if len(part.encode()) > limits.NAME_BYTES:
            raise HostilePath(f"path {shown!r} has a name of more than {limits.NAME_BYTES} bytes")
    return path


def check_tree(files: Iterable[str]) -> None:
    """Check that no path is given twice and none is both a file and a directory.

    Raises HostilePath. The paths themselves must have passed `checked`.
    """
    seen: set[str] = set()
    for path in files:
        if path in seen:
            raise HostilePath(f"path {path[:80]!r} is given twice")
        seen.add(path)
    for path in seen:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in seen:
                raise HostilePath(f"path {parent[:80]!r} is both a file and a directory")
            parent = parent.rpartition("/")[0]


def sort_key(path: str) -> bytes:
    """Order paths by their UTF-8 bytes, whatever the locale."""
    return path.encode()
