"""Complete files, one copy per content, under ids that this node computed over their bytes."""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from modelpack.disk.durable import sync
from modelpack.disk.errors import disk_errors
from modelpack.disk.extents import shared_bytes


def file_id(algorithm: str, size: int, lengths: Sequence[int], digests: bytes) -> str:
    """Return the id of a file: the SHA-256 of its chunk list.

    Whoever calls this has verified every chunk, or is only asking whether the file is here.
    """
    hasher = hashlib.sha256(f"modelpack file 1 {algorithm} {size}\n".encode())
    hasher.update(array("I", lengths).tobytes())
    hasher.update(digests)
    return hasher.hexdigest()


class Files:
    """The files of the store. Its caller sees to it that nothing is adopted while it collects."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, id_: str) -> Path:
        """Return where the file with this id is, or would be."""
        return self._root / id_[:2] / id_

    def has(self, id_: str, size: int) -> bool:
        """Whether the file is here, in the size it must have."""
        try:
            return self.path(id_).stat().st_size == size
        except FileNotFoundError:
            return False

    def size(self, id_: str) -> int:
        """Return the bytes of a file; 0 if it is not here."""
        try:
            return self.path(id_).stat().st_size
        except FileNotFoundError:
            return 0

    def adopt(self, staged: Path, id_: str) -> None:
        """Take in a staged file, which is complete, verified and durable.

        The staged name stays, so that a crash before the snapshot exists loses nothing.
        """
        path = self.path(id_)
        with disk_errors("keep", path):
            if not path.parent.exists():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                sync(path.parent.parent)
            if not path.exists():
                staged.chmod(0o444)
                sync(staged)
                with suppress(FileExistsError):
                    os.link(staged, path)
            # Also where the name was there: whoever made it may have been killed before this.
            sync(path.parent)

    def forget(self, id_: str) -> None:
        """Take away the name of a damaged file: nothing will be linked to it any more."""
        path = self.path(id_)
        with disk_errors("quarantine", path), suppress(FileNotFoundError):
            path.unlink()
            sync(path.parent)

    def all(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the id and the stat of every file."""
        for directory in os.scandir(self._root):
            with os.scandir(directory.path) as entries:
                for entry in entries:
                    yield entry.name, entry.stat(follow_symlinks=False)

    def collect(self, ids: Iterable[str]) -> int:
        """Remove those of the files that no snapshot links to; returns the bytes freed.

        Blocks that another file has, too, are not free then and do not count.
        """
        freed = 0
        touched: set[Path] = set()
        for id_ in ids:
            path = self.path(id_)
            with disk_errors("remove", path), suppress(FileNotFoundError):
                status = path.stat()
                if status.st_nlink == 1:
                    shared = _shared(path)
                    path.unlink()
                    touched.add(path.parent)
                    freed += max(0, status.st_size - shared)
        for directory in touched:
            with disk_errors("sync", directory):
                sync(directory)
        return freed


def _shared(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return 0  # it is removed whatever can be said of it
    try:
        return shared_bytes(fd)
    finally:
        os.close(fd)
