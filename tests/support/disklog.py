"""What happened to a directory, as changes of inodes and names, from the calls of a program."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.diskevents import MARK, Event, Marked, Moded, Named, Resized, Synced, Written
from tests.support.straced import Call

ROOT = 0


@dataclass(slots=True)
class Inode:
    """What an inode is from its beginning to its end; `names` and `data` are those at the end."""

    kind: str
    mode: int
    target: str = ""
    names: dict[str, int] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Open:
    inode: int
    append: bool
    at: int = 0


class DiskLog:
    """The events below a directory that was empty at first. Raises on calls it cannot replay."""

    def __init__(self, base: Path, calls: Iterable[Call]) -> None:
        self.base = str(base)
        self.events: list[Event] = []
        self.inodes = [Inode("directory", 0o755)]
        self._open: dict[int, _Open] = {}
        lengths = [0]
        for call in calls:
            if call.result >= 0 or call.name in ("access", "faccessat", "faccessat2"):
                self._take(call, lengths[call.before])
            lengths.append(len(self.events))

    def _take(self, call: Call, began: int) -> None:
        handler = getattr(self, f"_{call.name}", None)
        if handler is not None:
            handler(call)
        elif call.name in ("fsync", "fdatasync", "syncfs"):
            _, path = call.fd(0)
            if self._inside(path):
                found = self._opened(call, 0)
                inode = None if found is None or call.name == "syncfs" else found.inode
                self.events.append(Synced(inode, began, path[len(self.base) + 1 :]))
        elif any(self._inside(path) for path in _paths(call)):
            raise AssertionError(f"{call.name} cannot be replayed")

    def _inside(self, path: str) -> bool:
        return path.startswith(f"{self.base}/") or path == self.base

    # Names.

    def _find(self, path: str) -> int | None:
        inode: int | None = ROOT
        for part in path[len(self.base) :].split("/"):
            if part and inode is not None:
                inode = self.inodes[inode].names.get(part)
        return inode

    def _slot(self, path: str) -> tuple[int, str]:
        parent, name = os.path.split(path)
        directory = self._find(parent)
        assert directory is not None, path
        return directory, name

    def _rename_slots(self, *slots: tuple[tuple[int, str], int | None]) -> None:
        changes = []
        for (directory, name), after in slots:
            names = self.inodes[directory].names
            changes.append((directory, name, names.get(name), after))
            if after is None:
                names.pop(name)
            else:
                names[name] = after
        self.events.append(Named(tuple(changes)))

    def _create(self, path: str, inode: Inode) -> int:
        self.inodes.append(inode)
        number = len(self.inodes) - 1
        self._rename_slots((self._slot(path), number))
        return number

    def _mkdir(self, call: Call) -> None:
        if self._inside(path := call.text(0)):
            self._create(path, Inode("directory", call.mode(1) & 0o755))

    def _symlink(self, call: Call) -> None:
        if self._inside(path := call.text(1)):
            self._create(path, Inode("link", 0o777, call.text(0)))

    def _link(self, call: Call) -> None:
        if self._inside(path := call.text(1)):
            self._rename_slots((self._slot(path), self._find(call.text(0))))

    def _rename(self, call: Call) -> None:
        old, new = call.text(0), call.text(1)
        if self._inside(old) or self._inside(new):
            inode = self._find(old)
            if inode != self._find(new):
                self._rename_slots((self._slot(old), None), (self._slot(new), inode))

    def _unlink(self, call: Call) -> None:
        if self._inside(path := call.text(0)):
            self._rename_slots((self._slot(path), None))

    _rmdir = _unlink

    def _unlinkat(self, call: Call) -> None:
        if self._inside(path := _below(call, 0)):
            self._rename_slots((self._slot(path), None))

    def _chmod(self, call: Call) -> None:
        if self._inside(path := call.text(0)):
            self.events.append(Moded(self._find(path) or 0, call.mode(1)))

    def _fchmod(self, call: Call) -> None:
        if (found := self._opened(call, 0)) is not None:
            self.events.append(Moded(found.inode, call.mode(1)))

    # Descriptors. One process at a time is at work, so that numbers are enough.

    def _opened(self, call: Call, number: int) -> _Open | None:
        fd, path = call.fd(number)
        if not self._inside(path):
            return None
        found = self._open[fd]
        assert self._find(path) in (found.inode, None), f"{fd} is not the descriptor of {path}"
        return found

    def _openat(self, call: Call) -> None:
        path, flags = _below(call, 0), call.flags(2)
        self._open.pop(call.result, None)
        if not self._inside(path):
            return
        inode = self._find(path)
        if inode is None:
            assert "O_CREAT" in flags, path
            inode = self._create(path, Inode("file", call.mode(3) & 0o755))
        elif "O_TRUNC" in flags:
            self._resize(inode, 0)
        self._open[call.result] = _Open(inode, "O_APPEND" in flags)

    def _lseek(self, call: Call) -> None:
        # A directory is listed through a copy of its descriptor, which is of no interest.
        fd, path = call.fd(0)
        if self._inside(path) and fd in self._open and self._open[fd].inode == self._find(path):
            self._open[fd].at = call.result

    def _mmap(self, call: Call) -> None:
        _, path = call.fd(4)
        if (
            self._inside(path)
            and {"PROT_WRITE"} <= call.flags(2)
            and b"SHARED" in call.arguments[3]
        ):
            # SQLite rebuilds this index of its log after every crash.
            assert path.endswith(".sqlite-shm"), path

    # Data.

    def _put(self, inode: int, offset: int, data: bytes) -> None:
        image = self.inodes[inode].data
        if len(image) < offset:
            image += bytes(offset - len(image))
        image[offset : offset + len(data)] = data
        self.events.append(Written(inode, offset, bytes(data)))

    def _resize(self, inode: int, size: int) -> None:
        image = self.inodes[inode].data
        del image[size:]
        image += bytes(size - len(image))
        self.events.append(Resized(inode, size))

    def _write(self, call: Call) -> None:
        if (found := self._opened(call, 0)) is not None:
            if found.append:
                found.at = len(self.inodes[found.inode].data)
            self._put(found.inode, found.at, call.data(1)[: call.result])
            found.at += call.result

    def _pwrite64(self, call: Call) -> None:
        if (found := self._opened(call, 0)) is not None:
            self._put(found.inode, call.number(3), call.data(1)[: call.result])

    def _ftruncate(self, call: Call) -> None:
        if (found := self._opened(call, 0)) is not None:
            self._resize(found.inode, call.number(1))

    def _fallocate(self, call: Call) -> None:
        if (found := self._opened(call, 0)) is not None:
            assert call.number(1) == 0, "only plain preallocation is understood"
            size = max(len(self.inodes[found.inode].data), call.number(2) + call.number(3))
            self._resize(found.inode, size)

    def _copy_file_range(self, call: Call) -> None:
        source, target = self._opened(call, 0), self._opened(call, 2)
        if source is not None and target is not None:
            start = call.number(1)
            data = bytes(self.inodes[source.inode].data[start : start + call.result])
            self._put(target.inode, target.at, data)
            target.at += call.result

    def _access(self, call: Call) -> None:
        if call.text(0).startswith(MARK):
            what = json.loads(call.text(0)[len(MARK) :])
            self.events.append(
                Synced(None, len(self.events), "") if what == {"rebooted": True} else Marked(what)
            )

    def _ioctl(self, call: Call) -> None:
        assert b"FICLONE" not in call.arguments[1] or self._opened(call, 0) is None

    def _faccessat2(self, call: Call) -> None:
        """Asks, and changes nothing."""

    _faccessat = _faccessat2


def _below(call: Call, number: int) -> str:
    """Return the path that a descriptor of a directory and a name mean."""
    return os.path.normpath(os.path.join(call.fd(number)[1], call.text(number + 1)))


def _paths(call: Call) -> list[str]:
    return [
        call.text(n) if argument[:1] == b'"' else call.fd(n)[1]
        for n, argument in enumerate(call.arguments)
        if argument[:3] == b'"\\x' or b"<" in argument
    ]
