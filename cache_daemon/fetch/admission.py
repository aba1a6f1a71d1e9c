"""The last word before a model is shown: what the operator demands of artifacts.

Rules are wrapped around each other (`both`); each raises Refused. They see everything that was
verified, and the staged files; what they refuse stays unpublished.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from cache_daemon.api.errors import Refused
from cache_daemon.api.values import Snapshot
from cache_daemon.fetch.request import Wanted
from cache_daemon.store.proof import offered, wrong_layers
from cache_daemon.store.snapshots import Papers
from cache_daemon.store.store import Store


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is complete and verified, but not shown yet; `path_of` finds files by id."""

    wanted: Wanted
    snapshot: Snapshot
    papers: Papers
    path_of: Callable[[str], Path]


Admission = Callable[[Candidate], None]


def admit_all(_candidate: Candidate) -> None:
    """Demand nothing more."""


def both(*rules: Admission) -> Admission:
    """Demand what all of the rules demand."""

    def check(candidate: Candidate) -> None:
        for rule in rules:
            rule(candidate)

    return check


def algorithms(accepted: Collection[str]) -> Admission:
    """Demand that chunks are digested with one of these algorithms."""

    def check(candidate: Candidate) -> None:
        index = candidate.wanted.artifact.index
        used = index.header.algorithm if index else "sha256"
        if used not in accepted:
            raise Refused(
                f"{candidate.wanted.name}: its chunks are digested with {used}; accepted here: "
                f"{', '.join(sorted(accepted))}",
                hint="push it with --chunk-digest, or change --chunk-digests of the daemon",
            )

    return check


def whole_layers(store: Store) -> Admission:
    """Demand that layers made of the verified files have the SHA-256 of the manifest."""

    def check(candidate: Candidate) -> None:
        snapshot = candidate.snapshot
        paths = {file.path: candidate.path_of(file.id) for file in snapshot.files if file.id}
        layers = offered(snapshot, candidate.papers)
        wrong = wrong_layers(layers, paths)
        if wrong:
            reason = f"layer {wrong[0]} is not what the chunk index says of it"
            store.refuse(snapshot.digest, reason)
            store.check_refused(snapshot.digest, candidate.wanted.name)

    return check
