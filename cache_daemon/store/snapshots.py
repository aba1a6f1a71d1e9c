"""Snapshots: trees of hard links into the files of the store, complete or not there at all.

    snapshots/<key>/snapshot.json   what it is; written last but one
    snapshots/<key>/index           its chunk index, if it has one
    snapshots/<key>/manifest        the manifest as it came, and the config
    snapshots/<key>/proven.json     the layers whose SHA-256 was computed over these files
    snapshots/<key>/tree/           what is mounted

A snapshot is prepared as `.new-<key>` and gets its name by a rename; it is removed by a rename to
`.old-<key>` first. Names that start with a dot are debris after a crash.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_daemon.api.values import Snapshot
from cache_daemon.store.files import Files
from cache_daemon.store.records import read_record, write_file, write_record
from modelpack.disk.durable import sync
from modelpack.disk.errors import disk_errors

_RECORD: Final = "snapshot.json"
_INDEX: Final = "index"
_TREE: Final = "tree"
_MANIFEST: Final = "manifest"
_CONFIG: Final = "config"
_PROVEN: Final = "proven.json"


@dataclass(frozen=True, slots=True)
class Papers:
    """What describes an artifact, as it came: manifest, config, chunk index. Empty if unknown."""

    manifest: bytes = b""
    config: bytes = b""
    index: bytes = b""


class Snapshots:
    """The snapshots directory."""

    def __init__(self, root: Path, files: Files) -> None:
        self._root = root
        self._files = files

    def tree(self, key: str) -> Path:
        """Return the directory that is mounted."""
        return self._root / key / _TREE

    def papers(self, key: str) -> Papers:
        """Return what came with a snapshot."""
        names = (_MANIFEST, _CONFIG, _INDEX)
        return Papers(*(_read(self._root / key / name) for name in names))

    def index(self, key: str) -> bytes:
        """Return the chunk index; empty if the snapshot has none."""
        return _read(self._root / key / _INDEX)

    def proven(self, key: str) -> frozenset[str]:
        """Return the layers that were found to be what their SHA-256 says."""
        return frozenset(read_record(self._root / key / _PROVEN, list[str]) or ())

    def prove(self, key: str, layers: Iterable[str]) -> None:
        """Remember these layers as proven."""
        if (self._root / key).exists():
            write_record(self._root / key / _PROVEN, sorted(layers))

    def load(self) -> Iterator[Snapshot]:
        """Yield the snapshots that are on the disk and whole; others are taken away."""
        for directory in sorted(self._root.iterdir()):
            record = read_record(directory / _RECORD, Snapshot)
            if record is not None and record.key == directory.name and self._whole(record):
                yield record
            else:
                self.remove(directory.name)

    def publish(self, snapshot: Snapshot, papers: Papers) -> None:
        """Make the tree and give it its name; all files are in the store."""
        new, named = self._root / f".new-{snapshot.key}", self._root / snapshot.key
        if named.exists():  # its name could not be made durable, so it was not shown: once more
            self.remove(snapshot.key)
        with disk_errors("publish", named):
            if new.exists():
                shutil.rmtree(new)
            try:
                self._make(new, snapshot, papers)
                new.rename(named)
            except OSError:
                # On a full disk it would take blocks and inodes until the next start.
                shutil.rmtree(new, ignore_errors=True)
                raise
            sync(self._root)

    def remove(self, key: str) -> None:
        """Take away the name, then the tree."""
        old = self._root / f".old-{key}"
        with disk_errors("remove", self._root / key):
            if old.exists():
                shutil.rmtree(old)
            (self._root / key).rename(old)
            sync(self._root)
            shutil.rmtree(old)

    def move(self, key: str, directory: Path) -> None:
        """Take away the name, but keep the tree: somebody may have it mounted."""
        with disk_errors("quarantine", self._root / key):
            (self._root / key).rename(directory)
            sync(directory.parent)
            sync(self._root)

    def _make(self, new: Path, snapshot: Snapshot, papers: Papers) -> None:
        tree = new / _TREE
        tree.mkdir(parents=True, mode=0o755)
        directories = {new, tree}
        for file in snapshot.files:
            path = tree / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            directories.update(parent for parent in path.parents if tree in parent.parents)
            if file.link:
                path.symlink_to(file.link)
            else:
                os.link(self._files.path(file.id), path)
        for name, data in (
            (_MANIFEST, papers.manifest),
            (_CONFIG, papers.config),
            (_INDEX, papers.index),
        ):
            if data:
                write_file(new / name, data)
        write_record(new / _RECORD, snapshot)
        for directory in directories:
            sync(directory)

    def _whole(self, snapshot: Snapshot) -> bool:
        """Whether every path is a link to the very file that the store has under its id."""
        tree = self.tree(snapshot.key)
        try:
            for file in snapshot.files:
                path = tree / file.path
                if file.link:
                    if str(path.readlink()) != file.link:
                        return False
                    continue
                status = path.lstat()
                stored = self._files.path(file.id).lstat()
                if status.st_ino != stored.st_ino or status.st_size != file.size:
                    return False
        except OSError:
            return False
        return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
