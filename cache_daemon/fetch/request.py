"""What somebody wants: a reference resolved to an artifact, and the files chosen of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from cache_daemon.api.values import domain_of, snapshot_key
from cache_daemon.store.files import file_id
from modelpack.checkout.artifact import Artifact, read_artifact
from modelpack.select.patterns import Selection
from modelpack.spec.errors import NotFound
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository


class Opener(Protocol):
    """Opens repositories with somebody's credentials."""

    def __call__(self, reference: Reference, /) -> Repository:
        """Open; nothing is asked of the other side yet."""


@dataclass(frozen=True)
class Wanted:
    """One artifact and the files wanted of it. `patterns` as in `modelpack pull`."""

    reference: Reference
    artifact: Artifact
    takes: Callable[[str], bool]
    patterns: tuple[Sequence[str], Sequence[str]]
    open: Opener
    namespace: str = ""
    seconds: float = 0.0  # that the registry took to say what it is

    @property
    def domain(self) -> str:
        """The reuse domain of its repository."""
        return domain_of(self.reference)

    @property
    def name(self) -> str:
        """The reference, with the digest."""
        return str(self.reference.at(self.artifact.digest))

    @cached_property
    def files(self) -> list[int]:
        """The numbers of the chosen files in the index; empty where there is none."""
        index = self.artifact.index
        return [n for n, file in enumerate(index.files) if self.takes(file.path)] if index else []

    @cached_property
    def key(self) -> str:
        """The key of the snapshot that it will be."""
        digest = str(self.artifact.digest)
        index = self.artifact.index
        if index:
            return snapshot_key(digest, (index.files[number].path for number in self.files))
        include, exclude = self.patterns
        # The files are not known before the layers are here: the patterns stand for them.
        return snapshot_key(digest, [f"+{p}" for p in include] + [f"-{p}" for p in exclude])

    def id_of(self, number: int) -> str:
        """Return the id that a file of the index will have, once its chunks are verified."""
        index = self.artifact.index
        assert index is not None  # noqa: S101  # numbers come from the index
        file = index.files[number]
        lengths = index.lengths[file.first : file.first + file.chunks]
        return file_id(index.header.algorithm, file.size, lengths, index.digests(file))


def resolve(
    reference: Reference,
    opener: Opener,
    include: Sequence[str],
    exclude: Sequence[str],
    namespace: str = "",
) -> Wanted:
    """Ask the registry, with the caller's credentials, what a reference is.

    Raises NotFound, Unauthorized, Denied and the other registry and artifact errors: whoever may
    not read the manifest learns nothing of what is here.
    """
    started = time.monotonic()
    takes = Selection(include, exclude).takes
    repository = opener(reference)
    try:
        artifact = read_artifact(repository, reference.target)
    finally:
        repository.close()
    patterns = (tuple(include), tuple(exclude))
    took = round(time.monotonic() - started, 3)
    wanted = Wanted(reference, artifact, takes, patterns, opener, namespace, took)
    if artifact.index and not wanted.files:
        raise NotFound(
            f"{wanted.name}: none of {len(artifact.index.files)} files selected",
            hint="check include and exclude; `modelpack inspect` lists the files",
        )
    return wanted
