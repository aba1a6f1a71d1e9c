"""`inspect`, `diff` and `verify`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from modelpack.cli.exits import DIFFERENT
from modelpack.cli.options import Exclude, Include, Platform, with_session
from modelpack.cli.output import Outcome, count, size
from modelpack.spec.reference import Reference
from modelpack.verbs.diff import Difference, FileChange, diff
from modelpack.verbs.inspect import Inspection, inspect
from modelpack.verbs.session import Session
from modelpack.verbs.verify import verify

_SHOWN = 8


@with_session
def inspect_command(
    what: Annotated[str, typer.Argument(metavar="REF|DIR", help="An artifact or a directory.")],
    *,
    session: Session,
    platform: Platform = "",
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
) -> Outcome:
    """Show files, tensors, types, chunks, sizes, annotations and the VRAM that is needed.

    Weights are not downloaded: only the index and the headers of weight files are read.

    Examples:

      modelpack inspect registry.example.com/llm/llama-3-8b:v3

      modelpack inspect ./llama-3-8b --tensors
    """
    found = inspect(what, session, platform=platform)
    return Outcome(found, list(_inspection(found, tensors=tensors)))


@with_session
def diff_command(
    a: Annotated[str, typer.Argument(metavar="A", help="Reference or directory.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Reference or directory.")],
    *,
    session: Session,
) -> Outcome:
    """Show which files and tensors changed from A to B, and how many bytes a pull would move.

    Examples:

      modelpack diff registry.example.com/llm/llama-3-8b:v3 registry.example.com/llm/llama-3-8b:v4

      modelpack diff ./llama-3-8b registry.example.com/llm/llama-3-8b:v4
    """
    found = diff(a, b, session)
    return Outcome(found, list(_difference(found)))


@with_session
def verify_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What was pulled.")],
    reference: Annotated[
        str, typer.Argument(metavar="[REF]", help="What it should be; by default what was pulled.")
    ] = "",
    *,
    session: Session,
    include: Include = None,
    exclude: Exclude = None,
) -> Outcome:
    """Read every byte in DIR and compare it with what was published. Exit code 6 if it differs.

    Examples:

      modelpack verify ./llama-3-8b

      modelpack verify ./llama-3-8b registry.example.com/llm/llama-3-8b:v3
    """
    found = verify(
        directory,
        session,
        reference=Reference.parse(reference) if reference else None,
        include=include or (),
        exclude=exclude or (),
    )
    lines = [f"{bad.path}: {bad.problem}" for bad in found.bad]
    if found.extra:
        lines.append(f"  {count(len(found.extra), 'file')} more, not published, in the directory")
    verdict = (
        "ok"
        if found.ok
        else f"NOT the same: {len(found.bad)} of {count(found.files, 'file')} differ"
    )
    lines.append(f"{verdict}: {found.directory}, {size(found.bytes_read)} read, {found.reference}")
    return Outcome(found, lines, 0 if found.ok else DIFFERENT)


def _inspection(found: Inspection, *, tensors: bool) -> Iterator[str]:
    yield found.reference
    yield (
        f"  {found.kind}: {size(found.bytes_total)} in {count(len(found.files), 'file')}, "
        f"{count(len(found.layers), 'layer')}, {count(found.chunks, 'chunk')}"
    )
    if found.tensors:
        types = ", ".join(f"{dtype} {size(bytes_)}" for dtype, bytes_ in found.dtypes.items())
        yield f"  {count(found.tensors, 'tensor')}, {found.parameters:,} parameters: {types}"
    if found.estimated_vram_bytes:
        yield f"  needs about {size(found.estimated_vram_bytes)} of VRAM on one GPU"
    yield ""
    width = max((len(row.path) for row in found.files), default=0)
    chunk_width = max((len(count(row.chunks, "chunk")) for row in found.files), default=0)
    for row in found.files:
        inside = count(len(row.tensors), "tensor") if row.tensors else ""
        chunks = f"{count(row.chunks, 'chunk'):<{chunk_width}}"
        line = f"  {row.path:<{width}}  {size(row.bytes):>8}  {chunks}  {inside}"
        yield line.rstrip()
        for tensor in row.tensors if tensors else ():
            shape = "x".join(map(str, tensor.shape)) or "scalar"
            yield f"      {tensor.name}  {tensor.dtype} {shape}  {size(tensor.bytes)}"
    if found.annotations:
        yield ""
    for key, value in sorted(found.annotations.items()):
        yield f"  {key} = {value if len(value) <= 120 else value[:117] + '...'}"


def _difference(found: Difference) -> Iterator[str]:
    for change in found.files:
        yield from _change(change)
    if found.identical:
        yield f"identical: {count(found.files_unchanged, 'file')}, {size(found.bytes_total)}"
        return
    share = 100 * found.bytes_to_move / found.bytes_total if found.bytes_total else 0
    yield (
        f"{count(len(found.files), 'file')} changed, {found.files_unchanged} not; a pull moves "
        f"{size(found.bytes_to_move)} of {size(found.bytes_total)} ({share:.1f} %)"
    )


def _change(change: FileChange) -> Iterator[str]:
    sign = {"added": "+", "removed": "-", "changed": "~"}[change.change]
    yield f"{sign} {change.path}  {size(change.bytes_to_move)} to move"
    for mark, names in (
        ("~", change.tensors_changed),
        ("+", change.tensors_added),
        ("-", change.tensors_removed),
    ):
        for name in names[:_SHOWN]:
            yield f"    {mark} {name}"
        if len(names) > _SHOWN:
            yield f"    {mark} and {len(names) - _SHOWN} more tensors"
