"""`modelpack verify`: is what lies in a directory what was published? Every byte is read."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from modelpack.checkout.artifact import read_artifact
from modelpack.checkout.whole import verify_blob
from modelpack.chunks.table import digest_chunks
from modelpack.pack.walk import Directory
from modelpack.select.patterns import Selection
from modelpack.spec.digest import Digest
from modelpack.spec.errors import InputError, IntegrityError, Unsupported
from modelpack.spec.index import ChunkIndex, decode
from modelpack.spec.manifest import Descriptor
from modelpack.spec.progress import QUIET
from modelpack.spec.reference import Reference
from modelpack.state.pulled import Pulled
from modelpack.transfer.crew import work
from modelpack.verbs.session import Session


class BadFile(msgspec.Struct, frozen=True):
    """A file that is not what was published. `bytes_wrong` are those of the chunks that differ."""

    path: str
    problem: str
    bytes_wrong: int


class Verification(msgspec.Struct, frozen=True):
    """What was found. `extra` files are there but not published; they do no harm."""

    directory: str
    reference: str
    digest: str
    ok: bool
    files: int
    bytes_read: int
    bad: list[BadFile]
    extra: list[str]


def verify(
    directory: Path,
    session: Session,
    *,
    reference: Reference | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Verification:
    """Compare a directory with `reference`, or with what was last pulled into it.

    Nothing is believed: no digest cache, no time stamps. Raises InputError where nothing is known
    about the directory, Unsupported for an artifact without a chunk index.
    """
    directory = directory.resolve()
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    index, digest, name, unsigned = _published(directory, session, reference)
    takes = Selection(include, exclude).takes
    chosen = [number for number, file in enumerate(index.files) if takes(file.path)]
    progress = session.reporter.bar("verifying")
    progress.expect(sum(index.files[number].size for number in chosen))
    bad: dict[str, BadFile] = {}
    read: list[int] = []

    def check(number: int) -> None:
        file = index.files[number]
        problem = _compare(directory / file.path, index, number)
        if not problem and unsigned:
            problem = _compare_whole(directory / file.path, file.path, unsigned[file.layer])
        if problem:
            bad[file.path] = problem
        if not problem or problem.bytes_wrong:
            read.append(file.size)
        progress.advance(file.size)

    work(chosen, check, workers=session.jobs)
    published = {file.path for file in index.files}
    present = Directory(directory).files() if any(directory.iterdir()) else []
    return Verification(
        directory=str(directory),
        reference=name,
        digest=str(digest),
        ok=not bad,
        files=len(chosen),
        bytes_read=sum(read),
        bad=[bad[path] for path in sorted(bad)],
        extra=[file.path for file in present if file.path not in published],
    )


def _published(
    directory: Path, session: Session, reference: Reference | None
) -> tuple[ChunkIndex, Digest, str, tuple[Descriptor, ...]]:
    """Return what was published; the layers, too, where nothing vouches for the index."""
    if reference is None:
        known = Pulled(session.database).get(directory)
        if known is None:
            raise InputError(
                f"{directory}: no pull into it is remembered here",
                hint=f"name what it should be: modelpack verify {directory} REFERENCE",
            )
        return decode(known.index), Digest.parse(known.digest), known.reference, ()
    with session.repository(reference) as repository:
        artifact = read_artifact(repository, reference.target)
    if artifact.index is None:
        raise Unsupported(
            f"{reference}: has no chunk index to compare with",
            hint="pull it into another directory and compare the two",
        )
    unsigned = () if artifact.index_signed else artifact.layers
    return artifact.index, artifact.digest, str(reference.at(artifact.digest)), unsigned


def _compare_whole(path: Path, name: str, layer: Descriptor) -> BadFile | None:
    """Compare a file with the layer that it is; the index beside may say anything."""
    try:
        verify_blob(path, layer, str(path), QUIET)
    except IntegrityError:
        return BadFile(name, f"is not {layer.digest}", layer.size)
    return None


def _compare(path: Path, index: ChunkIndex, number: int) -> BadFile | None:
    file = index.files[number]
    if path.is_symlink() or not path.is_file():
        return BadFile(file.path, "missing", 0)
    size = path.stat().st_size
    if size != file.size:
        return BadFile(file.path, f"{size} bytes, expected {file.size}", 0)
    chunks = list(index.chunks(file))
    with path.open("rb") as opened:
        digests = digest_chunks(
            opened.fileno(), [chunk.length for chunk in chunks], index.header.algorithm
        )
    size_of = len(digests) // len(chunks) if chunks else 0
    wrong = [
        chunk
        for at, chunk in enumerate(chunks)
        if digests[at * size_of : (at + 1) * size_of] != chunk.digest
    ]
    if not wrong:
        return None
    return BadFile(
        file.path,
        f"{len(wrong)} of {len(chunks)} chunks differ, the first at byte {wrong[0].offset}",
        sum(chunk.length for chunk in wrong),
    )
