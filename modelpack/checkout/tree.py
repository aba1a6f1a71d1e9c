"""An artifact's files before they have names: numbered files, and a tree that exists in memory.

Hostile paths never touch the file system: they are keys here, checked when they are added, and as a
whole before anything is placed. Later entries replace earlier ones, and whiteouts remove those of
earlier layers (OCI image-spec, layer.md, "Applying Changesets").
"""

import errno
import os
import posixpath
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, TypeAlias

from modelpack.disk.errors import disk_errors
from modelpack.disk.space import require_space
from modelpack.spec import limits
from modelpack.spec.errors import HostilePath, LimitExceeded
from modelpack.spec.names import RESERVED_DIRECTORY
from modelpack.spec.paths import check_tree, checked

_MODE: Final = 0o600
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A regular file: where its bytes are, how many, and which layer (counted) brought it."""

    file: Path
    size: int
    layer: int


@dataclass(frozen=True, slots=True)
class StagedLink:
    """A symbolic link. `target` is relative, normal, and stays inside the tree."""

    target: str
    layer: int


Entry: TypeAlias = StagedFile | StagedLink
_Directory: TypeAlias = "dict[str, Entry | _Directory]"


class StagedTree:
    """The files of one artifact. Not for several threads.

    Paths are checked by every method: HostilePath for those that must not be created, among them
    any that would pass through a file or a link; LimitExceeded above limits.FILES entries, counting
    directories, whiteouts and what was replaced.
    """

    def __init__(self, directory: Path) -> None:
        """Stage in `directory`, which exists, is empty and belongs to nobody else."""
        self._directory = directory
        self._root: _Directory = {}
        self._numbers = 0
        self._entries = 0
        self._directories = 0
        self._layer = 0
        self._hidden: set[str] = set()

    @property
    def directory(self) -> Path:
        """Where the staged files are."""
        return self._directory

    def begin_layer(self) -> None:
        """What comes now belongs to the next layer: its whiteouts hide what is there so far."""
        self._layer += 1
        self._hidden.clear()

    def create(self, path: str, size: int) -> FileIO:
        """Add a file of `size` bytes that the caller writes and closes.

        Raises DiskError with the shortfall if they do not fit.
        """
        if size > limits.MIB:
            require_space(self._directory, size)
        file = self._next()
        self._put(path, StagedFile(file, size, self._layer))
        with disk_errors("create", file):
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        return FileIO(fd, "w")

    def adopt(self, path: str, file: Path) -> None:
        """Add a file that is staged elsewhere, such as a raw layer; it stays where it is."""
        with disk_errors("look at", file):
            size = file.stat().st_size
        self._put(path, StagedFile(file, size, self._layer))

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link; an absolute target counts from the root of the artifact.

        Raises HostilePath if the target is outside.
        """
        self._put(path, StagedLink(_inside(checked(path), target), self._layer))

    def hardlink(self, path: str, existing: str) -> None:
        """Add another name for a regular file that is there already; raises HostilePath."""
        source = self._find(existing)
        if not isinstance(source, StagedFile):
            raise HostilePath(
                f"path {path[:80]!r} is a hard link to {existing[:80]!r}, which is no regular file "
                "of this artifact"
            )
        file = self._next()
        with disk_errors("link", file):
            try:
                os.link(source.file, file)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                require_space(self._directory, source.size)
                shutil.copyfile(source.file, file)
        self._put(path, StagedFile(file, source.size, self._layer))

    def make_directory(self, path: str) -> None:
        """Take note of a directory: it replaces a file or link; directories exist by their files.

        The empty path is the root.
        """
        self._count()
        if path:
            parent, name = self._parent(checked(path))
            if not isinstance(parent.get(name, {}), dict):
                self._forget(parent.pop(name))

    def remove(self, path: str) -> None:
        """Remove a file, a link, or everything below a directory; nothing if it is not there."""
        parent, name = self._split(path)
        if parent is not None and name in parent:
            self._forget(parent.pop(name))

    def hide(self, path: str) -> None:
        """Remove what earlier layers have at `path` and below."""
        self._count()
        parent, name = self._split(path)
        if parent is not None and name in parent and path not in self._hidden:
            self._hidden.add(path)
            self._hide(parent, name)

    def hide_below(self, path: str) -> None:
        """Remove what earlier layers have below the directory `path`; empty for the root."""
        self._count()
        directory = self._find(path) if path else self._root
        # Again would change nothing and cost a walk: files of this layer are never hidden.
        if isinstance(directory, dict) and f"{path}/" not in self._hidden:
            self._hidden.add(f"{path}/")
            for name in list(directory):
                self._hide(directory, name)

    def checked(self) -> dict[str, Entry]:
        """Return all entries by path; raises HostilePath if they are not a tree."""
        entries = dict(_walk(self._root, ""))
        # Both hold by the way entries are added; this gate does not depend on it.
        check_tree(checked(path) for path in entries)
        return entries

    def _put(self, path: str, entry: Entry) -> None:
        parent, name = self._parent(checked(path))
        if path.partition("/")[0] == RESERVED_DIRECTORY:
            raise HostilePath(f"path {path[:80]!r} is in the directory that modelpack keeps")
        self._count()
        if name in parent:
            self._forget(parent[name])
        parent[name] = entry

    def _parent(self, path: str) -> tuple[_Directory, str]:
        """Return the directory of `path`, made if need be, and the name in it."""
        directory = self._root
        *parents, name = path.split("/")
        for depth, part in enumerate(parents, 1):
            child = directory.get(part)
            if child is None:
                self._directories += 1
                if self._directories > limits.FILES:
                    raise LimitExceeded(f"artifact has more than {limits.FILES} directories")
                child = directory[part] = {}
            if not isinstance(child, dict):
                what = "a link" if isinstance(child, StagedLink) else "a file"
                through = "/".join(parents[:depth])
                raise HostilePath(f"path {path[:80]!r} passes through {through[:80]!r}, {what}")
            directory = child
        return directory, name

    def _find(self, path: str) -> "Entry | _Directory | None":
        parent, name = self._split(path)
        return parent.get(name) if parent is not None else None

    def _split(self, path: str) -> "tuple[_Directory | None, str]":
        """Return the directory of `path`, if there is one, and the name in it."""
        directory = self._root
        *parents, name = path.split("/")
        for part in parents:
            child = directory.get(part)
            if not isinstance(child, dict):
                return None, name
            directory = child
        return directory, name

    def _hide(self, parent: _Directory, name: str) -> None:
        found = parent[name]
        if isinstance(found, dict):
            for child in list(found):
                self._hide(found, child)
        elif found.layer < self._layer:
            self._forget(parent.pop(name))

    def _forget(self, found: "Entry | _Directory") -> None:
        """Drop the bytes of what is no longer in the tree."""
        if isinstance(found, dict):
            for child in found.values():
                self._forget(child)
        elif isinstance(found, StagedFile) and found.file.parent == self._directory:
            with disk_errors("remove", found.file):
                found.file.unlink(missing_ok=True)

    def _count(self) -> None:
        self._entries += 1
        if self._entries > limits.FILES:
            raise LimitExceeded(f"artifact has more than {limits.FILES} entries")

    def _next(self) -> Path:
        self._numbers += 1
        return self._directory / str(self._numbers)


def _walk(directory: _Directory, prefix: str) -> Iterator[tuple[str, Entry]]:
    for name, child in directory.items():
        if isinstance(child, dict):
            yield from _walk(child, f"{prefix}{name}/")
        else:
            yield prefix + name, child


def _inside(path: str, target: str) -> str:
    """Return what the link at `path` should say to mean `target`; raises HostilePath.

    The answer has `..` only at its start. No path passes through a link, so these lead through real
    directories; what follows only descends. Hence it stays inside whatever else is a link.
    """
    shown = target if len(target) <= 80 else target[:77] + "..."
    if not target or "\0" in target or len(target.encode()) > limits.PATH_BYTES:
        raise HostilePath(f"path {path[:80]!r} is a link to {shown!r}, which is not a path")
    parent = [] if target.startswith("/") else path.split("/")[:-1]
    at = list(parent)
    for part in target.split("/"):
        if part == ".." and not at:
            raise HostilePath(f"path {path[:80]!r} is a link to {shown!r}, outside the artifact")
        if part == "..":
            at.pop()
        elif part not in ("", "."):
            at.append(part)
    return posixpath.relpath("/" + "/".join(at), "/" + posixpath.dirname(path))
