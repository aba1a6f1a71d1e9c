"""What can happen to files and names: the log of a disk, and remarks in it."""

import json
import os
from dataclasses import dataclass

MARK = "/powerloss/"  # access() on a path below it is a remark in the log


def mark(**what: object) -> None:
    """Put a remark into the log of the program that is being recorded."""
    os.access(MARK + json.dumps(what), os.F_OK)


@dataclass(frozen=True, slots=True)
class Named:
    """Names changed, atomically: (directory, name, inode before or None, inode after or None)."""

    changes: tuple[tuple[int, str, int | None, int | None], ...]


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes were written to a file."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resized:
    """A file was cut off or made longer."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Moded:
    """The mode of an inode changed."""

    inode: int
    mode: int


@dataclass(frozen=True, slots=True)
class Synced:
    """What happened to an inode (or to any: None) among the first `covers` events is durable."""

    inode: int | None
    covers: int
    path: str


@dataclass(frozen=True, slots=True)
class Marked:
    """A remark of the program itself."""

    what: dict


Event = Named | Written | Resized | Moded | Synced | Marked
