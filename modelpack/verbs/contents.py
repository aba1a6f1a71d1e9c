"""A model seen as files with chunks, wherever it is: in a registry or in a directory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from modelpack.checkout.artifact import Artifact, read_artifact
from modelpack.chunks.table import ChunkTable, TableCache
from modelpack.formats.detect import read_header
from modelpack.formats.facts import Facts, model_facts, parse_config
from modelpack.pack.plan import make_plan
from modelpack.pack.walk import Directory
from modelpack.spec import limits
from modelpack.spec.errors import BadHeader, InputError, Unsupported
from modelpack.spec.index import Coding
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository
from modelpack.spec.tensors import TensorFile
from modelpack.transfer.crew import work
from modelpack.transfer.file import open_file
from modelpack.verbs.session import Session


@dataclass(frozen=True, slots=True)
class FileView:
    """One file: its chunks, and its tensors if it has a header that can be read."""

    path: str
    size: int
    table: ChunkTable
    stored: Sequence[int]  # bytes that each chunk takes in its layer
    header: TensorFile | None


@dataclass(frozen=True, slots=True)
class Contents:
    """All files of a model, by path."""

    name: str
    coding: Coding
    files: dict[str, FileView]
    facts: Facts
    artifact: Artifact | None = field(default=None)


def is_directory(text: str) -> bool:
    """Whether an argument that may be a reference or a directory means the directory."""
    if text.startswith("oci:"):
        return False
    path = Path(text)
    looks_local = text.startswith(("/", "./", "../", "~")) or text in (".", "..")
    try:
        if path.exists():
            return True
    except OSError:
        return False  # too long for a path, so it is none
    if looks_local:
        raise InputError(f"{text}: no such file or directory")
    return False


def contents(
    text: str, session: Session, *, platform: str = "", like: Coding | None = None
) -> Contents:
    """Read the contents of a reference or a directory.

    A directory is cut and digested as `like` says. Raises Unsupported for an artifact without a
    chunk index.
    """
    if is_directory(text):
        return directory_contents(Path(text), session, like or Coding())
    reference = Reference.parse(text)
    with session.repository(reference) as repository:
        artifact = read_artifact(repository, reference.target, platform)
        return artifact_contents(artifact, repository, str(reference))


def artifact_contents(artifact: Artifact, repository: Repository, name: str) -> Contents:
    """Read the contents of an artifact: index and headers, no weights."""
    index = artifact.index
    if index is None:
        raise Unsupported(
            f"{name}: has no chunk index, so its files cannot be told without a download",
            hint="pull it, and name the directory instead",
        )
    files = {}
    config: dict[str, object] | None = None
    for file in index.files:
        layer = artifact.layers[file.layer]
        chunks = slice(file.first, file.first + file.chunks)
        header = None
        # Empty files, and all but tensor files, need no request.
        with open_file(repository, index, file, layer) as opened:
            if file.size and file.path.lower().endswith((".safetensors", ".gguf")):
                header = _header(opened, file.size, file.path)
            if file.path.rpartition("/")[2] == "config.json" and file.size <= limits.CONFIG_BYTES:
                config = config or parse_config(opened.read())
        table = ChunkTable(index.lengths[chunks], index.digests(file))
        files[file.path] = FileView(file.path, file.size, table, index.stored[chunks], header)
    headers = {path: view.header for path, view in files.items() if view.header}
    return Contents(name, index.coding, files, model_facts(headers, config), artifact)


def directory_contents(directory: Path, session: Session, coding: Coding) -> Contents:
    """Read the contents of a directory, digesting what is not remembered."""
    plan = make_plan(Directory(directory), chunk_size=coding.chunk_size)
    tables = TableCache(session.cache, coding.algorithm, coding.chunk_size)
    progress = session.reporter.bar("hashing")
    progress.expect(plan.total_bytes)
    found: dict[str, ChunkTable] = {}

    def digest(number: int) -> None:
        file = plan.files[number]
        found[file.path] = tables.of(Path(file.location), file.path)
        progress.advance(file.size)

    work(range(len(plan.files)), digest, workers=session.jobs)
    files = {
        file.path: FileView(
            file.path, file.size, found[file.path], found[file.path].lengths,
            plan.headers.get(file.path),
        )
        for file in plan.files
    }  # fmt: skip
    return Contents(str(directory), coding, files, plan.facts)


def _header(opened: BinaryIO, size: int, path: str) -> TensorFile | None:
    try:
        return read_header(opened, size, path)
    except BadHeader:
        return None  # published by somebody who did not look; its bytes are what they are
