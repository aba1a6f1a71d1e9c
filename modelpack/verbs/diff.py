"""`modelpack diff`: which files and tensors changed, and how many bytes a pull would move."""

from bisect import bisect_right
from itertools import accumulate

import msgspec

from modelpack.spec.errors import Unsupported
from modelpack.spec.tensors import Tensor
from modelpack.verbs.contents import Contents, FileView, contents, is_directory
from modelpack.verbs.session import Session


class FileChange(msgspec.Struct, frozen=True):
    """One file. `change` is "added", "removed" or "changed"; tensors are named where known."""

    path: str
    change: str
    bytes_before: int
    bytes_after: int
    bytes_to_move: int
    tensors_changed: list[str]
    tensors_added: list[str]
    tensors_removed: list[str]


class Difference(msgspec.Struct, frozen=True):
    """From `a` to `b`. `bytes_to_move` is what a pull of `b` fetches where `a` is at hand."""

    a: str
    b: str
    identical: bool
    files: list[FileChange]
    files_unchanged: int
    bytes_total: int
    bytes_to_move: int


def diff(a: str, b: str, session: Session) -> Difference:
    """Compare two models, each a reference or a directory.

    Raises Unsupported if their chunks were digested in different ways.
    """
    if is_directory(a) and not is_directory(b):
        after = contents(b, session)
        before = contents(a, session, like=after.coding)
    else:
        before = contents(a, session)
        after = contents(b, session, like=before.coding)
    if before.coding.algorithm != after.coding.algorithm:
        raise Unsupported(
            f"{a} and {b}: chunks are digested by {before.coding.algorithm} and "
            f"{after.coding.algorithm}; they cannot be compared",
            hint="pull both and compare the directories",
        )
    known = _digests(before)
    changes = []
    unchanged = to_move = 0
    for path in sorted({*before.files, *after.files}):
        old, new = before.files.get(path), after.files.get(path)
        if old and new and old.size == new.size and old.table.digests == new.table.digests:
            unchanged += 1
            continue
        change = _change(path, old, new, known)
        to_move += change.bytes_to_move
        changes.append(change)
    return Difference(
        a=a,
        b=b,
        identical=not changes,
        files=changes,
        files_unchanged=unchanged,
        bytes_total=sum(view.size for view in after.files.values()),
        bytes_to_move=to_move,
    )


def _digests(model: Contents) -> set[bytes]:
    return {
        view.table.digest(number)
        for view in model.files.values()
        for number in range(len(view.table.lengths))
    }


def _change(path: str, old: FileView | None, new: FileView | None, known: set[bytes]) -> FileChange:
    to_move = 0
    for number, stored in enumerate(new.stored if new else ()):
        digest = new.table.digest(number) if new else b""
        if digest not in known:
            to_move += stored
            known.add(digest)  # a chunk that occurs twice travels once
    before, after = _tensors(old), _tensors(new)
    return FileChange(
        path=path,
        change="changed" if old and new else "added" if new else "removed",
        bytes_before=old.size if old else 0,
        bytes_after=new.size if new else 0,
        bytes_to_move=to_move,
        tensors_changed=[n for n in after if n in before and after[n] != before[n]],
        tensors_added=[name for name in after if name not in before],
        tensors_removed=[name for name in before if name not in after],
    )


def _tensors(view: FileView | None) -> dict[str, tuple[object, ...]]:
    """Return what tells each tensor from a changed one: type, shape, digests of its chunks."""
    if view is None or view.header is None:
        return {}
    starts = list(accumulate(view.table.lengths, initial=0))
    return {
        tensor.name: (tensor.dtype, tensor.shape, _content(view, tensor, starts))
        for tensor in view.header.tensors
    }


def _content(view: FileView, tensor: Tensor, starts: list[int]) -> tuple[object, ...]:
    """Digests of the chunks that a tensor lies in, and where in the first of them it begins.

    Small tensors share a chunk, so a change of one is reported for its neighbours too.
    """
    if not tensor.size:
        return ()
    first = bisect_right(starts, tensor.start) - 1
    last = bisect_right(starts, tensor.end - 1) - 1
    digests = tuple(view.table.digest(number) for number in range(first, last + 1))
    return (tensor.start - starts[first], *digests)
