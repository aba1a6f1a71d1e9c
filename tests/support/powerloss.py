"""A disk that forgets what was not synced: the directories that a power loss may leave.

What is assumed of the file system, and nothing else:

- fsync of a file makes its bytes, size and mode durable, as they were when the call began; it does
  not make its names durable. fsync of a directory makes the names in it durable. sync_file_range and
  a later rename, link or close make nothing durable.
- A name changes at once; a rename changes both of its names or none. So a rename between two
  directories is durable with either of them.
- What is not durable may be on the disk or not, each file and each name for itself: bytes by blocks
  (of 512 or 4096 bytes), each as it was at any time since the file was last synced; the size as it
  was at any time since then, also ahead of the bytes, which are zeros then; the mode.
- Bytes that were never written to a file are zeros, never those of another file. Link counts are
  right, names lead to inodes that exist: journals and fsck see to that. What is durable stays.

In the *ordered* variant all names and modes change in the order of the calls, as in the journals of
ext4 and xfs: an fsync makes durable what was done to names before the last change of its inode, too.
In the *unordered* variant every name that was not synced is kept or forgotten for itself: that is
what POSIX promises, and less than ext4, xfs and btrfs do.
"""

import os
import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.diskevents import Event, Moded, Named, Resized, Synced, Written
from tests.support.disklog import ROOT, DiskLog

_VERSIONS = 6  # of a file's bytes that blocks are mixed of
Ignored = Callable[[Synced], bool]


@dataclass(frozen=True, slots=True)
class Loss:
    """How much of what was not synced is gone: nothing, everything, or what `seed` says."""

    kind: str  # "nothing", "everything", "ordered", "unordered"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Left:
    """What is on the disk after a power loss; equal if no program could see a difference."""

    names: tuple[tuple[int, tuple[tuple[str, int], ...]], ...]
    modes: tuple[tuple[int, int], ...]
    data: tuple[tuple[int, bytes], ...]


class Disk:
    """The events of a log, on a disk whose power may fail after any of them."""

    def __init__(self, log: DiskLog, ignored: Ignored = lambda _sync: False) -> None:
        """Syncs that are `ignored` make nothing durable."""
        self.log = log
        self.events: list[Event] = [
            replace(one, covers=0) if isinstance(one, Synced) and ignored(one) else one
            for one in log.events
        ]
        self._named = [(at, one) for at, one in enumerate(self.events) if isinstance(one, Named)]
        self._named_at = [at for at, _ in self._named]
        self._moded = [(at, one) for at, one in enumerate(self.events) if isinstance(one, Moded)]
        self._bytes: dict[int, list[tuple[int, Written | Resized]]] = {}
        for at, one in enumerate(self.events):
            if isinstance(one, Written | Resized):
                self._bytes.setdefault(one.inode, []).append((at, one))
        self._synced = [(at, one) for at, one in enumerate(self.events) if isinstance(one, Synced)]
        self._images: dict[tuple[int, int], bytes] = {}

    def boundaries(self) -> list[int]:
        """Return where syncs are: the instants just before and just after them."""
        syncs = [at for at, _ in self._synced]
        return sorted({cut for at in syncs for cut in (at - 1, at, at + 1, at + 2) if cut > 0})

    def after(self, cut: int, loss: Loss) -> Left:
        """Return what is there if the power failed when the first `cut` events had happened."""
        chance = random.Random(f"{loss.kind} {loss.seed} {cut}")
        durable = self._durable(cut)
        kept, moded = self._kept(cut, loss, durable, chance)
        names = self._names(kept)
        reached = _reachable(names)
        modes = {number: self.log.inodes[number].mode for number in reached}
        for _, one in moded:
            if one.inode in modes:
                modes[one.inode] = one.mode
        files = sorted(number for number in reached if self.log.inodes[number].kind == "file")
        return Left(
            tuple((n, tuple(sorted(names.get(n, {}).items()))) for n in sorted(reached)
                  if self.log.inodes[n].kind == "directory"),
            tuple(sorted(modes.items())),
            tuple((n, self._image(n, cut, durable(n), loss, chance)) for n in files),
        )  # fmt: skip

    def _durable(self, cut: int) -> Callable[[int], int]:
        """Return how many events are durable where they concern an inode."""
        every, each = 0, {ROOT: 0}
        for at, one in self._synced:
            if at >= cut:
                break
            if one.inode is None:
                every = max(every, one.covers)
            else:
                each[one.inode] = max(each.get(one.inode, 0), one.covers)
        return lambda inode: max(every, each.get(inode, 0))

    def _kept(
        self, cut: int, loss: Loss, durable: Callable[[int], int], chance: random.Random
    ) -> tuple[list[Named], list[tuple[int, Moded]]]:
        """Choose which changes of names and modes are on the disk."""
        named = self._named[: bisect_left(self._named_at, cut)]
        moded = [(at, one) for at, one in self._moded if at < cut]
        safe = {at for at, one in named if any(at < durable(c[0]) for c in one.changes)}
        safe |= {at for at, one in moded if at < durable(one.inode)}
        if loss.kind == "everything":
            end, share = cut, 1.0
        elif loss.kind == "ordered":
            # The journal is written in order: some point in it after the last that must be there.
            end, share = chance.randint(max(safe, default=-1) + 1, cut), 0.0
        else:
            end, share = 0, 0.0 if loss.kind == "nothing" else chance.choice((0.1, 0.5, 0.9))
        safe = {
            at for at, _ in [*named, *moded] if at in safe or at < end or chance.random() < share
        }
        return [one for at, one in named if at in safe], [both for both in moded if both[0] in safe]

    def _names(self, kept: list[Named]) -> dict[int, dict[str, int]]:
        """Return the names in each directory, of those changes of them that are possible."""
        names: dict[int, dict[str, int]] = {ROOT: {}}
        for one in kept:
            for directory, name, before, after in one.changes:
                entries = names.setdefault(directory, {})
                if after is not None:
                    entries[name] = after
                elif entries.get(name) == before:
                    del entries[name]
        return names

    def _image(
        self, inode: int, cut: int, durable: int, loss: Loss, chance: random.Random
    ) -> bytes:
        changes = [(at, one) for at, one in self._bytes.get(inode, []) if at < cut]
        base = self._applied(inode, durable)
        pending = [at for at, _ in changes if at >= durable]
        if not pending or loss.kind == "nothing":
            return base
        last = self._applied(inode, pending[-1] + 1)
        if loss.kind == "everything":
            return last
        some = sorted(chance.sample(pending[:-1], min(len(pending) - 1, _VERSIONS - 2)))
        versions = [base, *(self._applied(inode, at + 1, keep=False) for at in some), last]
        size = len(chance.choice(versions))
        block, weight = chance.choice((512, 4096)), chance.choice((0.1, 0.5, 0.9))
        mixed = bytearray(size)
        for start in range(0, size, block):
            version = last if chance.random() < weight else chance.choice(versions)
            piece = version[start : min(start + block, size)]
            mixed[start : start + len(piece)] = piece
        return bytes(mixed)

    def _applied(self, inode: int, end: int, *, keep: bool = True) -> bytes:
        """Return the bytes of a file after those of the first `end` events that change it."""
        changes = [one for at, one in self._bytes.get(inode, []) if at < end]
        if (found := self._images.get((inode, len(changes)))) is not None:
            return found
        image = bytearray()
        for one in changes:
            if isinstance(one, Resized):
                del image[one.size :]
                image += bytes(one.size - len(image))
            else:
                image += bytes(max(0, one.offset - len(image)))
                image[one.offset : one.offset + len(one.data)] = one.data
        if keep:
            self._images[inode, len(changes)] = bytes(image)
        return bytes(image)

    def restore(self, left: Left, directory: Path) -> None:
        """Make a directory that is like that; it does not exist yet."""
        names, modes, data = dict(left.names), dict(left.modes), dict(left.data)
        made: dict[int, Path] = {}

        def make(number: int, path: Path) -> None:
            inode = self.log.inodes[number]
            if inode.kind == "directory":
                path.mkdir()
                for name, child in names.get(number, ()):
                    make(child, path / name)
                path.chmod(modes[number])
            elif number in made:
                os.link(made[number], path)
            elif inode.kind == "link":
                path.symlink_to(inode.target)
            else:
                path.write_bytes(data[number])
                path.chmod(modes[number])
                made[number] = path

        make(ROOT, directory)


def _reachable(names: dict[int, dict[str, int]]) -> set[int]:
    found, left = {ROOT}, [ROOT]
    while left:
        for number in names.get(left.pop(), {}).values():
            if number not in found:
                found.add(number)
                left.append(number)
    return found
