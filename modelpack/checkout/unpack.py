"""A layer blob that is an archive becomes staged files."""

import os
from typing import BinaryIO, Final

from modelpack.checkout.feed import DecodedFeed, PlainFeed
from modelpack.checkout.tree import StagedTree
from modelpack.codec.tarheader import Member
from modelpack.codec.tarread import TarInput, TarReader
from modelpack.codec.unzip import decoded
from modelpack.disk.errors import disk_errors
from modelpack.spec.errors import ArtifactError, HostilePath, Unsupported
from modelpack.spec.kinds import encoding, has_whiteouts
from modelpack.spec.names import RESERVED_DIRECTORY
from modelpack.spec.progress import Counter, Progress

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"


def unpack(
    blob: BinaryIO, media_type: str, tree: StagedTree, *, layer: str, progress: Progress
) -> None:
    """Add the members of one layer to `tree`, on top of what is there.

    `blob` is a regular file, whose digest was verified; `layer` names it in errors; `progress`
    hears its bytes. File modes, owners and times are not kept, so set-id bits cannot survive.
    Raises HostilePath, BadManifest (not the archive that its type says, or cut off), LimitExceeded,
    Unsupported, DiskError; the tree is of no use after that.
    """
    found = encoding(media_type)
    if found is None or found[0] != "tar":
        raise Unsupported(f"layer {layer}: {media_type[:100]!r} is not an archive")
    size = os.fstat(blob.fileno()).st_size
    progress.expect(size)
    counter = Counter(progress)
    tree.begin_layer()
    try:
        reader = TarReader(_feed(blob, size, found[1], counter))
        for member in reader:
            _add(member, reader, tree, whiteouts=has_whiteouts(media_type))
    except ArtifactError as error:
        raise type(error)(f"layer {layer}: {error}", hint=error.hint) from error
    # What follows the end of an archive (padding, tables of contents) is not read.
    progress.advance(size - counter.total)


def _feed(blob: BinaryIO, size: int, compression: str, progress: Progress) -> TarInput:
    if not compression:
        return PlainFeed(blob, progress)
    stream = decoded(_Heard(blob, progress), compression)
    return DecodedFeed(stream, DecodedFeed.limit_of(size))


def _add(member: Member, reader: TarReader, tree: StagedTree, *, whiteouts: bool) -> None:
    directory, _, name = member.path.rpartition("/")
    # A copy that lost its annotations has the chunk index as an ordinary file.
    if member.path.partition("/")[0] == RESERVED_DIRECTORY:
        return
    if whiteouts and name.startswith(_WHITEOUT):
        _hide(directory, name, tree)
    elif member.kind == "directory":
        tree.make_directory(member.path)
    elif member.kind == "symlink":
        tree.link(member.path, member.target)
    elif member.kind == "hardlink":
        tree.hardlink(member.path, member.target)
    else:
        with (
            tree.create(member.path, member.size) as file,
            disk_errors("unpack into", tree.directory),
        ):
            reader.copy(file.fileno())


def _hide(directory: str, name: str, tree: StagedTree) -> None:
    if name == _OPAQUE:
        tree.hide_below(directory)
        return
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in ("", ".", ".."):
        raise HostilePath(f"whiteout {name!r} hides {hidden!r}, which is no name")
    tree.hide(f"{directory}/{hidden}" if directory else hidden)


class _Heard:
    """A file whose reads are heard of."""

    def __init__(self, blob: BinaryIO, progress: Progress) -> None:
        self._blob = blob
        self._progress = progress

    def read(self, size: int, /) -> bytes:
        data = self._blob.read(size)
        self._progress.advance(len(data))
        return data
