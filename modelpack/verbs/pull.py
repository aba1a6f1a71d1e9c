"""`modelpack pull`: an artifact becomes files in a directory."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from modelpack.checkout.area import beside
from modelpack.checkout.artifact import Artifact, read_artifact
from modelpack.checkout.indexed import Finder, IndexedCheckout, Moved
from modelpack.checkout.place import Staged, Target
from modelpack.checkout.reuse import files_below
from modelpack.checkout.staging import Staging
from modelpack.checkout.whole import WholeCheckout, verify_blob
from modelpack.chunks.table import TableCache
from modelpack.select.patterns import Selection
from modelpack.spec.errors import (
    ArtifactError,
    IntegrityError,
    NotFound,
    TargetConflict,
)
from modelpack.spec.index import ChunkIndex
from modelpack.spec.kinds import layer_plan
from modelpack.spec.progress import QUIET
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository
from modelpack.state.placed import Placed
from modelpack.state.pulled import LastPull, Pulled
from modelpack.verbs.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """What to pull and how. `reuse` are directories that may hold some of the bytes already."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    platform: str = ""
    reuse: Sequence[Path] = ()
    overwrite: bool = False


class PullResult(msgspec.Struct, frozen=True):
    """What happened.

    Bytes are payload bytes in `bytes_total` and `bytes_reused` (copied or already in place), bytes
    received in `bytes_moved`. `bytes_cloned` of those reused share their blocks with other files.
    """

    reference: str
    digest: str
    bytes_total: int
    bytes_moved: int
    bytes_reused: int
    seconds: float
    files: int
    chunks: int
    removed: list[str]
    bytes_cloned: int = 0


def pull(
    reference: Reference, directory: Path, session: Session, options: PullOptions
) -> PullResult:
    """Bring the artifact into `directory`: complete, verified and durable, or not at all.

    Files of an earlier pull that were not edited are replaced or removed; nothing else that is
    there is touched. Run again after an interruption, it continues. Raises TargetConflict, the
    ArtifactError, IntegrityError, RegistryError and DiskError families.
    """
    started = time.monotonic()
    directory = _resolved(directory)
    target = Target(directory, Placed(session.database, directory), overwrite=options.overwrite)
    takes = Selection(options.include, options.exclude).takes
    with session.repository(reference) as repository:
        artifact = read_artifact(repository, reference.target, options.platform)
        run = _Pull(artifact, repository, directory, target, session, options)
        try:
            index = artifact.index
            moved, files, total, removed = run.indexed(takes) if index else run.whole(takes)
        except _IndexLies:
            index = None
            moved, files, total, removed = run.whole(takes)
    name = str(reference.at(artifact.digest))
    pulled = Pulled(session.database)
    if index:
        pulled.put(directory, LastPull(name, str(artifact.digest), index.encode()))
    else:
        pulled.drop(directory)
    return PullResult(
        reference=name,
        digest=str(artifact.digest),
        bytes_total=total,
        bytes_moved=moved.received,
        bytes_reused=moved.reused,
        seconds=round(time.monotonic() - started, 3),
        files=files,
        chunks=len(index) if index else 0,
        removed=removed,
        bytes_cloned=moved.cloned,
    )


def _resolved(directory: Path) -> Path:
    for place in (directory, *directory.parents):
        if place.exists() and not place.is_dir():
            raise TargetConflict(f"{place}: is a file; expected a directory to pull into")
    return directory.resolve()


_Takes = Callable[[str], bool]


class _IndexLies(ArtifactError):
    """An index that is not covered by the manifest's digest contradicts the layers."""


@dataclass(frozen=True, slots=True)
class _Pull:
    artifact: Artifact
    repository: Repository
    directory: Path
    target: Target
    session: Session
    options: PullOptions

    def indexed(self, takes: _Takes) -> tuple[Moved, int, int, list[str]]:
        index = self.artifact.index
        assert index is not None  # noqa: S101  # for the type checker; the caller asked
        files = [n for n, file in enumerate(index.files) if takes(file.path)]
        self._require_files(len(files), len(index.files))
        tables = TableCache(self.session.cache, index.header.algorithm, index.header.chunk_size)
        checkout = IndexedCheckout(
            index, self.artifact.layers, tables, self.session.reporter, self.session.jobs
        )
        paths = [file.path for file in index.files]
        total = sum(index.files[number].size for number in files)
        # Held before anything is looked at: what is in place stays so until this pull is over.
        with Staging(beside(self.directory), self.artifact.digest, len(index)) as staging:
            kept = checkout.kept(files, self.target)
            wanted = [number for number in files if number not in kept]
            self.target.check(paths[number] for number in wanted)
            in_place = sum(index.files[number].size for number in kept)
            self.target.settle(paths[number] for number in kept)
            if not wanted:
                removed = self.target.remove_stale(paths)
                staging.discard()
                return Moved(0, in_place), len(files), total, removed
            try:
                moved = checkout.stage(wanted, staging, self.repository, self._found(paths))
                self._check_unsigned(index, files, kept, staging)
            except IntegrityError as error:
                if self.artifact.index_signed:
                    raise
                # Whose bytes are wrong, the layers' or the index's? Whole layers will tell.
                staging.discard()
                raise _IndexLies(str(error)) from error
            removed = self._place(checkout.staged(wanted, staging), paths, staging)
        return replace(moved, reused=moved.reused + in_place), len(files), total, removed

    def _found(self, paths: Sequence[str]) -> Finder:
        """Look into what is in place, what earlier pulls placed, and what the caller named."""
        candidates = [self.target.path(path) for path in (*paths, *self.target.earlier())]
        candidates += files_below(self.options.reuse)
        files = list(dict.fromkeys(path for path in candidates if path.is_file()))
        return lambda local: local.add_files(files, workers=self.session.jobs)

    def whole(self, takes: _Takes) -> tuple[Moved, int, int, list[str]]:
        layers = layer_plan(self.artifact.manifest)
        raw = [layer for layer in layers if layer.form != "raw" or takes(layer.path)]
        self._require_files(len(raw), len(layers))
        checkout = WholeCheckout(raw, self.repository, self.session.reporter, self.session.jobs)
        self.target.check(layer.path for layer in raw if layer.form == "raw")
        with Staging(beside(self.directory), self.artifact.digest, checkout.parts) as staging:
            try:
                moved, every = checkout.stage(staging)
                staged = {path: entry for path, entry in every.items() if takes(path)}
                self._require_files(len(staged), len(every))
                total = sum(s.file.stat().st_size for s in staged.values() if s.file)
                keep = [*every, *(layer.path for layer in layers if layer.form == "raw")]
                removed = self._place(staged, keep, staging)
            except (ArtifactError, NotFound):
                # It will be just as hostile next time: keep nothing of it.
                staging.discard()
                raise
        return moved, len(staged), total, removed

    def _place(
        self, staged: dict[str, Staged], all_paths: Sequence[str], staging: Staging
    ) -> list[str]:
        self.target.place(staged, str(self.artifact.digest))
        removed = self.target.remove_stale(all_paths)
        staging.discard()
        return removed

    def _check_unsigned(
        self, index: ChunkIndex, files: Sequence[int], kept: set[int], staging: Staging
    ) -> None:
        """Check whole files where the chunk digests themselves cannot be trusted."""
        if self.artifact.index_signed:
            return
        for number in files:
            file = index.files[number]
            blob = self.artifact.layers[file.layer]
            path = self.target.path(file.path) if number in kept else staging.path(number)
            verify_blob(path, blob, self.repository.name, QUIET)

    def _require_files(self, count: int, of: int) -> None:
        if not count:
            raise NotFound(
                f"{self.repository.name}@{self.artifact.digest}: none of {of} files selected",
                hint="check --include and --exclude; `modelpack inspect` lists the files",
            )
