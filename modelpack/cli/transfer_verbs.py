"""`push`, `pull` and `copy`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modelpack.cli.options import Exclude, Include, Platform, with_session
from modelpack.cli.output import Outcome, cloned, count, seconds, size
from modelpack.spec.errors import InputError
from modelpack.spec.index import Coding
from modelpack.spec.names import ANNOTATION_PREFIX
from modelpack.spec.reference import Reference
from modelpack.verbs.copy import copy
from modelpack.verbs.pull import PullOptions, pull
from modelpack.verbs.push import PushOptions, push
from modelpack.verbs.session import Session


class Form(StrEnum):
    """What --format takes."""

    IMAGE = "image"
    MODELPACK = "modelpack"


class Compression(StrEnum):
    """What --compression takes."""

    NONE = "none"
    ZSTD = "zstd"


class ChunkDigest(StrEnum):
    """What --chunk-digest takes."""

    BLAKE3 = "blake3"
    SHA256 = "sha256"


@with_session
def push_command(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Directory, file or s3://bucket/prefix.")
    ],
    reference: Annotated[str, typer.Argument(metavar="REF", help="Where to publish it.")],
    *,
    session: Session,
    include: Include = None,
    exclude: Exclude = None,
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="image: read by every OCI image reader. modelpack: CNCF ModelPack v0.0.7.",
        ),
    ] = Form.IMAGE,
    prefix: Annotated[
        str, typer.Option(metavar="DIR", help="Put all files below DIR; KServe wants 'models'.")
    ] = "",
    compression: Annotated[
        Compression,
        typer.Option(help="zstd: 22-24 % off bf16, for links slower than about 1 GB/s."),
    ] = Compression.NONE,
    chunk_digest: Annotated[
        ChunkDigest, typer.Option(help="sha256 where policy forbids BLAKE3.")
    ] = ChunkDigest.BLAKE3,
    annotation: Annotated[
        list[str] | None,
        typer.Option("--annotation", metavar="KEY=VALUE", help="Annotate the manifest."),
    ] = None,
    mount_from: Annotated[
        list[str] | None,
        typer.Option(
            "--mount-from", metavar="REPO", help="Repository that may hold layers already."
        ),
    ] = None,
) -> Outcome:
    """Pack SRC and publish it as REF.

    Examples:

      modelpack push ./llama-3-8b registry.example.com/llm/llama-3-8b:v3

      modelpack push ./llama-3-8b oci:./layout:v3 --exclude '*.bin'

      modelpack push s3://models/llama-3-8b registry.example.com/llm/llama-3-8b:v3 --json
    """
    if form is Form.MODELPACK and compression is Compression.ZSTD:
        raise InputError(
            "--format modelpack: --compression zstd: the tools that read ModelPack cannot read it",
            hint="leave one of them out",
        )
    options = PushOptions(
        include=include or (),
        exclude=exclude or (),
        prefix=prefix,
        modelpack_form=form is Form.MODELPACK,
        coding=Coding(
            algorithm=chunk_digest.value,
            codec="zstd" if compression is Compression.ZSTD else "",
        ),
        annotations=_annotations(annotation or []),
        mount_from=mount_from or (),
    )
    done = push(source, Reference.parse(reference), session, options)
    return Outcome(
        done,
        [
            f"pushed {done.reference}",
            (
                f"  {size(done.bytes_total)} in {count(done.files, 'file')}, "
                f"{count(done.layers, 'layer')}, {count(done.chunks, 'chunk')}"
            ),
            (
                f"  {size(done.bytes_moved)} uploaded, {size(done.bytes_reused)} already there, "
                f"{seconds(done.seconds)}"
            ),
        ],
    )


@with_session
def pull_command(
    reference: Annotated[str, typer.Argument(metavar="REF", help="What to pull.")],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where its files shall be.")],
    *,
    session: Session,
    include: Include = None,
    exclude: Exclude = None,
    platform: Platform = "",
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            "--reuse", metavar="DIR", exists=True, help="Directory that may hold some of the bytes."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that no pull placed.")
    ] = False,
) -> Outcome:
    """Pull REF into DIR: verified, complete, or not at all.

    Files of an earlier pull that were not edited are replaced; nothing else in DIR is touched.

    Examples:

      modelpack pull registry.example.com/llm/llama-3-8b:v3 ./llama-3-8b

      modelpack pull registry.example.com/llm/llama-3-8b:v4 ./v4 --reuse ./llama-3-8b

      modelpack pull oci:./layout:v3 ./llama-3-8b --include '*.json'
    """
    options = PullOptions(
        include=include or (),
        exclude=exclude or (),
        platform=platform,
        reuse=reuse or (),
        overwrite=overwrite,
    )
    if not directory:  # an unset variable of a shell must not mean the current directory
        raise InputError("the directory to pull into is empty", hint="name it; '.' for this one")
    done = pull(Reference.parse(reference), Path(directory), session, options)
    lines = [
        f"pulled {done.reference}",
        f"  {size(done.bytes_total)} in {count(done.files, 'file')} to {directory}",
        (
            f"  {size(done.bytes_moved)} fetched, {size(done.bytes_reused)} were here"
            f"{cloned(done.bytes_cloned)}, {seconds(done.seconds)}"
        ),
    ]
    if done.removed:
        lines.append(f"  {count(len(done.removed), 'file')} of the earlier version removed")
    return Outcome(done, lines)


@with_session
def copy_command(
    source: Annotated[str, typer.Argument(metavar="SRC_REF", help="What to copy.")],
    destination: Annotated[str, typer.Argument(metavar="DST_REF", help="Where to.")],
    *,
    session: Session,
) -> Outcome:
    """Copy an artifact between registries and layouts, digests preserved.

    Examples:

      modelpack copy registry.example.com/llm/llama-3-8b:v3 oci:./usb-stick:v3

      modelpack copy oci:./usb-stick:v3 airgapped.example.com/llm/llama-3-8b:v3
    """
    done = copy(Reference.parse(source), Reference.parse(destination), session)
    return Outcome(
        done,
        [
            f"copied {done.source}",
            f"    to {done.reference}",
            (
                f"  {size(done.bytes_moved)} copied, {size(done.bytes_reused)} already there, "
                f"{seconds(done.seconds)}"
            ),
        ],
    )


def _annotations(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InputError(f"--annotation {pair!r}: expected KEY=VALUE")
        if key.startswith(ANNOTATION_PREFIX) or not f"{key}{value}".isprintable():
            raise InputError(
                f"--annotation {pair!r}: keys of {ANNOTATION_PREFIX}* are the format's own, and "
                "control characters have no place in either part"
            )
        found[key] = value
    return found
