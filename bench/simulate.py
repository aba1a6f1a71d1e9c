"""A node's cache without a disk: the store's rules around `choose`, fast enough for many traces.

`tests/cache_daemon/test_trace.py` checks that it evicts what the store evicts, step by step.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from bench.trace import OVERHEAD, Model, Trace
from cache_daemon.space.evict import Candidate, choose


class Policy(Protocol):
    """What goes first. Times are seconds since the trace began."""

    def fetched(self, key: str, cost: float, moved: int) -> None:
        """A model came, in so many seconds and MB."""

    def used(self, key: str, now: float) -> None:
        """It came, or was leased."""

    def look(self, step: int, now: float) -> None:
        """Room must be made now."""

    def candidate(self, key: str, files: dict[str, int]) -> Candidate:
        """Return a model as `choose` wants it."""

    def worth(self, one: Candidate, unique: int) -> float:
        """Return how much keeping it is worth."""

    def evicted(self, one: Candidate, unique: int) -> None:
        """It went."""


@dataclass
class Score:
    """What a run comes to, over the starts of pods that could be served at all."""

    starts: int = 0
    hits: int = 0
    mb: int = 0
    mb_hit: int = 0
    seconds: float = 0.0
    seconds_avoided: float = 0.0
    refused: int = 0
    moved: int = 0  # MB over the network for pods, prefetches and pins

    def rates(self) -> dict[str, float]:
        return {
            "hits": self.hits / self.starts,
            "bytes": self.mb_hit / self.mb,
            "seconds": self.seconds_avoided / self.seconds,
        }


@dataclass
class Access:
    """A model was asked for, and is here: what is held on the node then."""

    key: str
    counts: bool  # somebody waits for it
    held: frozenset[str]


@dataclass
class Classes:
    """Files and chunks that are in exactly the same models are one: they come and go together."""

    files: dict[str, dict[str, int]]  # by model: sizes by class
    chunks: dict[str, dict[str, int]]

    @staticmethod
    def of(models: Iterable[Model]) -> "Classes":
        every = list(models)
        files = {m.key: {f.id: f.size for f in m.files} for m in every}
        chunks = {m.key: dict(chunk for f in m.files for chunk in f.chunks) for m in every}
        return Classes(_merged(files), _merged(chunks))


def _merged(models: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    users: dict[str, list[str]] = {}
    for key, parts in models.items():
        for part in parts:
            users.setdefault(part, []).append(key)
    names = {part: " ".join(sorted(keys)) for part, keys in users.items()}
    merged: dict[str, dict[str, int]] = {}
    for key, parts in models.items():
        sums = merged.setdefault(key, {})
        for part, size in parts.items():
            sums[names[part]] = sums.get(names[part], 0) + size
    return merged


@dataclass
class Node:
    """One run. `limit` is in MB."""

    trace: Trace
    limit: int
    policy: Policy
    classes: Classes
    score: Score = field(default_factory=Score)
    evictions: list[tuple[int, list[str]]] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)  # the event of each access

    def __post_init__(self) -> None:
        self.here: dict[str, None] = {}
        self.links: Counter[str] = Counter()
        self.used = 0
        self.leases: dict[str, str] = {}
        self.pinned: set[str] = set()

    def run(self) -> "Node":
        for step, event in enumerate(self.trace.events):
            if event.kind == "stop":
                self.leases.pop(f"{event.who} {event.model}", None)
            elif event.kind == "unpin":
                self.pinned.discard(event.model)
            else:
                self._asked(step)
        return self

    def _asked(self, step: int) -> None:
        event = self.trace.events[step]
        model = self.trace.models[event.model]
        counts = event.kind == "start"
        if not self._fetched(step, model, event.noise, counts=counts):
            self.score.refused += counts
            return
        if counts:
            self.leases[f"{event.who} {event.model}"] = event.model
            self.policy.used(model.key, event.time)
        elif event.kind == "pin":
            self.pinned.add(model.key)
        self.accesses.append(Access(model.key, counts, self._held()))
        self.steps.append(step)

    def _held(self) -> frozenset[str]:
        return frozenset(self.leases.values()) | self.pinned

    def _fetched(self, step: int, model: Model, noise: float, *, counts: bool) -> bool:
        moved, seconds = 0, 0.0
        if model.key not in self.here:
            if not self._room(step, model):
                return False
            chunks = self.classes.chunks[model.key]
            local = {id_ for key in self.here for id_ in self.classes.chunks[key]}
            moved = sum(size for id_, size in chunks.items() if id_ not in local)
            seconds = OVERHEAD + moved * model.seconds_per_mb
            self._add(model.key)
            self.policy.fetched(model.key, seconds * noise, moved)
            self.policy.used(model.key, self.trace.events[step].time)
            self.score.moved += moved
        if counts:
            cold = OVERHEAD + model.size * model.seconds_per_mb
            self.score.starts += 1
            self.score.hits += seconds == 0
            self.score.mb += model.size
            self.score.mb_hit += model.size - moved
            self.score.seconds += cold
            self.score.seconds_avoided += cold - seconds
        return True

    def _room(self, step: int, model: Model) -> bool:
        files = self.classes.files[model.key]
        absent = sum(size for id_, size in files.items() if not self.links[id_])
        missing = self.used + absent - self.limit
        if missing <= 0:
            return True
        self.policy.look(step, self.trace.events[step].time)
        links = self.links + Counter(dict.fromkeys(files, 1))
        held = self._held()
        candidates = [
            self.policy.candidate(key, self.classes.files[key])
            for key in self.here
            if key not in held
        ]
        chosen, freed = choose(candidates, links, missing, self.policy.worth)
        if freed < missing:
            return False
        for one in chosen:
            unique = sum(size for id_, size in one.files.items() if links[id_] <= 1)
            for id_ in one.files:
                links[id_] -= 1
            self._remove(one.key)
            self.policy.evicted(one, unique)
        self.evictions.append((step, [one.key for one in chosen]))
        return True

    def _add(self, key: str) -> None:
        self.here[key] = None
        for id_, size in self.classes.files[key].items():
            self.used += size if not self.links[id_] else 0
            self.links[id_] += 1

    def _remove(self, key: str) -> None:
        del self.here[key]
        for id_, size in self.classes.files[key].items():
            self.links[id_] -= 1
            self.used -= size if not self.links[id_] else 0
