"""From staged files to the target directory: check first, then one atomic rename per file."""

import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelpack.disk.durable import make_directories, sync
from modelpack.disk.errors import disk_errors
from modelpack.spec.errors import TargetConflict
from modelpack.state.digests import FileKey
from modelpack.state.placed import Placed

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Staged:
    """What a path shall become: a staged file, or a link with this target."""

    file: Path | None = None
    link: str = ""


class Target:
    """A directory that a pull writes to, and what in it belongs to earlier pulls."""

    def __init__(self, directory: Path, placed: Placed, *, overwrite: bool) -> None:
        self._directory = directory
        self._placed = placed
        self._overwrite = overwrite

    def path(self, path: str) -> Path:
        """Return the final path of an artifact path (which was checked)."""
        return self._directory / path

    def earlier(self) -> list[str]:
        """Return the paths that earlier pulls placed here."""
        return self._placed.paths()

    def check(self, paths: Iterable[str]) -> None:
        """Raise TargetConflict if placing files at `paths` would destroy what is not the model's.

        That is: a file that no pull placed or that was edited since, a directory where a file must
        go, a parent that is a file or a link. `overwrite` permits the first.
        """
        conflicts = [conflict for path in paths if (conflict := self._conflict(path))]
        if conflicts:
            shown = "; ".join(conflicts[:_SHOWN])
            more = f" and {len(conflicts) - _SHOWN} more" if len(conflicts) > _SHOWN else ""
            raise TargetConflict(
                f"{self._directory}: {shown}{more}",
                hint="move them away, pull into another directory, or use --overwrite",
            )

    def place(self, files: Mapping[str, Staged], manifest: str) -> None:
        """Give every staged file its final name, durably.

        Interrupted at any instant, each path holds either its old or its new file, complete.
        """
        self.check(files)
        directories = {self._directory}
        mode = 0o666 & ~_umask()
        # Before the first rename: killed after it, the next run must know these files for ours.
        for path, staged in files.items():
            if staged.file is not None:
                with disk_errors("place", self.path(path)):
                    staged.file.chmod(mode)
                    self._placed.intend(path, FileKey.of(staged.file.lstat()))
        for path, staged in files.items():
            final = self.path(path)
            with disk_errors("place", final):
                make_directories(final.parent)
                if staged.file is None:
                    _replace_link(final, staged.link, self._placed, path)
                else:
                    staged.file.replace(final)
            directories.update(self._parents(final))
        for path in files:
            # After all renames: one of a hard-linked pair changes the ctime of the other.
            with disk_errors("look at", self.path(path)):
                self._placed.add(path, FileKey.of(self.path(path).lstat()), manifest)
        for directory in directories:
            with disk_errors("sync", directory):
                sync(directory)

    def settle(self, paths: Iterable[str]) -> None:
        """Make files durable that are in place already, whoever wrote them."""
        directories: set[Path] = set()
        for path in paths:
            final = self.path(path)
            with disk_errors("sync", final):
                sync(final)
            directories.update(self._parents(final))
        for directory in directories:
            with disk_errors("sync", directory):
                sync(directory)

    def remove_stale(self, keep: Iterable[str]) -> list[str]:
        """Remove files of earlier pulls, unedited, that are not in `keep`; returns their paths."""
        kept = set(keep)
        removed = []
        for path in self._placed.paths():
            if path in kept:
                continue
            final = self.path(path)
            if not self._foreign_parent(path) and self._owned(path):
                with disk_errors("remove", final):
                    final.unlink()
                _remove_empty(final.parent, self._directory)
                removed.append(path)
            self._placed.drop(path)
        return removed

    def _owned(self, path: str) -> bool:
        try:
            return self._placed.owns(path, FileKey.of(self.path(path).lstat()))
        except OSError:
            return False

    def _conflict(self, path: str) -> str:
        parent = self._foreign_parent(path)
        if parent:
            return f"{parent} is not a directory"
        try:
            mode = self.path(path).lstat().st_mode
        except FileNotFoundError:
            return ""
        if stat.S_ISDIR(mode):
            return f"{path} is a directory"
        if self._overwrite or self._owned(path):
            return ""
        return f"{path} is not from an earlier pull, or was edited"

    def _foreign_parent(self, path: str) -> str:
        """Return the first parent that exists and is not a real directory."""
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = "/".join(parts[:depth])
            try:
                if not stat.S_ISDIR(self.path(parent).lstat().st_mode):
                    return parent
            except FileNotFoundError:
                return ""
        return ""

    def _parents(self, final: Path) -> Iterable[Path]:
        for parent in final.parents:
            yield parent
            if parent == self._directory:
                return


def _replace_link(final: Path, target: str, placed: Placed, path: str) -> None:
    temporary = final.with_name(f".modelpack-{secrets.token_hex(8)}")
    temporary.symlink_to(target)
    try:
        placed.intend(path, FileKey.of(temporary.lstat()))
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_empty(directory: Path, root: Path) -> None:
    while directory != root:
        try:
            directory.rmdir()
        except OSError:
            return
        directory = directory.parent


def _umask() -> int:
    # Reading it means setting it; once per process would be stale under a changed umask.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
