"""A model directory on disk: every file once, links checked, nothing surprising followed."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from modelpack.pack.origin import SourceFile
from modelpack.select.patterns import BUILT_IN, Selection
from modelpack.spec import limits
from modelpack.spec.errors import BadSource, HostilePath
from modelpack.spec.names import IGNORE_FILE
from modelpack.spec.paths import checked, sort_key
from modelpack.state.digests import FileKey

_KINDS: Final = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
)


class Directory:
    """Files below a directory, or a single file; a `pack.origin.Origin`.

    Links are followed if they stay inside the directory, or lead from a snapshot of the Hugging
    Face cache to the blobs beside it. Empty directories are not part of a model.
    """

    def __init__(
        self, source: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        """Look at `source`; raises BadSource if there is nothing that can be packed."""
        self.name = str(source)
        try:
            self._root = _snapshot(source.resolve(strict=True))
        except OSError as error:
            raise BadSource(f"{source}: {error.strerror or error}") from None
        except RuntimeError:
            raise BadSource(f"{source}: a link that leads to itself") from None
        self._allowed = _allowed_roots(self._root)
        self._selection = Selection(include, exclude, (*BUILT_IN, *_ignore_lines(self._root)))

    def files(self) -> list[SourceFile]:
        """List all selected files (see Origin)."""
        if not self._root.is_dir():
            found = [self._file(self._root, self._root.name)]
        else:
            found = sorted(self._walk(self._root, "", ()), key=lambda file: sort_key(file.path))
        if not found:
            raise BadSource(f"{self.name}: no files to pack", hint="check --include and --exclude")
        if len(found) > limits.FILES:
            raise BadSource(f"{self.name}: {len(found)} files; at most {limits.FILES}")
        return found

    @contextmanager
    def open(self, file: SourceFile) -> Iterator[BinaryIO]:
        """Open for reading a header (see Origin)."""
        try:
            with Path(file.location).open("rb") as opened:
                yield opened
        except OSError as error:
            raise BadSource(f"{file.path}: cannot be read: {error.strerror}") from error

    @contextmanager
    def stream(self, file: SourceFile, offset: int) -> "Iterator[FileStream]":
        """Stream the bytes (see Origin)."""
        try:
            fd = os.open(file.location, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadSource(f"{file.path}: cannot be read: {error.strerror}") from error
        try:
            _same(file, os.fstat(fd))
            yield FileStream(fd, offset, file)
        finally:
            os.close(fd)

    def check(self, file: SourceFile) -> None:
        """Raise BadSource if the file changed (see Origin)."""
        try:
            _same(file, Path(file.location).stat())
        except OSError as error:
            raise BadSource(f"{file.path}: {error.strerror}") from error

    def _walk(
        self, directory: Path, prefix: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[SourceFile]:
        try:
            status = directory.stat()
            entries = list(os.scandir(directory))
        except OSError as error:
            raise BadSource(f"{prefix or self.name}: cannot be read: {error.strerror}") from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise BadSource(f"{prefix}: a link that leads to a directory above it")
        for entry in entries:
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            location = self._resolved(Path(entry.path), path)
            if location is None:
                continue
            if location.is_dir():
                if self._selection.enters(path):
                    yield from self._walk(location, self._checked(path), (*above, here))
            elif self._selection.takes(path):
                yield self._file(location, path)

    def _checked(self, path: str) -> str:
        try:
            return checked(path)
        except HostilePath as error:
            raise BadSource(f"{self.name}: {error}", hint="rename it or exclude it") from None

    def _resolved(self, location: Path, path: str) -> Path | None:
        """Follow a link; None for one that is not selected anyway."""
        if not location.is_symlink():
            return location
        try:
            resolved = location.resolve(strict=True)
        except (OSError, RuntimeError):
            if not self._selection.takes(path):
                return None
            raise BadSource(
                f"{path}: a link to {str(location.readlink())!r}, which does not exist",
                hint="complete the download, or exclude it",
            ) from None
        if any(resolved.is_relative_to(root) for root in self._allowed):
            return resolved
        if not (self._selection.takes(path) and self._selection.enters(path)):
            return None
        raise BadSource(
            f"{path}: a link that leaves {self._root}, to {resolved}",
            hint="copy the file in, or exclude it",
        )

    def _file(self, location: Path, path: str) -> SourceFile:
        self._checked(path)
        try:
            status = location.stat()
        except OSError as error:
            raise BadSource(f"{path}: {error.strerror}") from error
        for is_kind, kind in _KINDS:
            if is_kind(status.st_mode):
                raise BadSource(f"{path}: {kind}; expected a regular file", hint="exclude it")
        if not os.access(location, os.R_OK):
            raise BadSource(f"{path}: permission to read is missing", hint="fix it or exclude it")
        return SourceFile(path, str(location), status.st_size, FileKey.of(status))


class FileStream:
    """Reads a file through one reused buffer."""

    def __init__(self, fd: int, offset: int, file: SourceFile) -> None:
        self._fd = fd
        self._offset = offset
        self._file = file
        self._buffer = memoryview(bytearray(limits.MIB))

    def read(self, size: int, /) -> memoryview:
        """Return the next bytes; the view is valid until the next call."""
        wanted = min(size, len(self._buffer), self._file.size - self._offset)
        try:
            got = os.preadv(self._fd, [self._buffer[:wanted]], self._offset) if wanted else 0
        except OSError as error:
            raise BadSource(f"{self._file.path}: cannot be read: {error.strerror}") from error
        if got < wanted and not got:
            raise _changed(self._file)
        self._offset += got
        return self._buffer[:got]


def _same(file: SourceFile, status: os.stat_result) -> None:
    if FileKey.of(status) != file.key:
        raise _changed(file)


def _changed(file: SourceFile) -> BadSource:
    return BadSource(
        f"{file.path}: changed while it was being packed",
        hint="wait until nothing writes to it, then run the same command again",
    )


def _ignore_lines(root: Path) -> list[str]:
    try:
        return (root / IGNORE_FILE).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise BadSource(f"{IGNORE_FILE}: cannot be read as UTF-8 text: {error}") from None


def _allowed_roots(root: Path) -> tuple[Path, ...]:
    # models--org--name/snapshots/<revision>/file -> ../../blobs/<hash>
    blobs = root.parent.parent / "blobs"
    if root.parent.name == "snapshots" and blobs.is_dir():
        return root, blobs
    return (root,)


def _snapshot(source: Path) -> Path:
    """Turn a repository of the Hugging Face cache into its snapshot; others stay as they are."""
    snapshots = source / "snapshots"
    if not (snapshots.is_dir() and (source / "blobs").is_dir()):
        return source
    try:
        revision = (source / "refs" / "main").read_text().strip()
    except OSError:
        revision = ""
    if revision and "/" not in revision and (snapshots / revision).is_dir():
        return snapshots / revision
    found = sorted(entry.name for entry in snapshots.iterdir())
    if len(found) == 1:
        return snapshots / found[0]
    raise BadSource(
        f"{source}: a Hugging Face cache with {len(found)} snapshots and no refs/main",
        hint=f"name one of them: {snapshots}/REVISION",
    )
