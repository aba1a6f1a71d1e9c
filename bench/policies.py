"""Eviction policies for the simulator: ours, and those it is compared with.

All evict through the product's `choose`; they differ in what a model is worth.
"""

from collections.abc import Callable

from cache_daemon.space.evict import HALF_LIFE, Candidate, worth
from cache_daemon.store.ledger import Usage


class Ours:
    """The product's `worth`, on uses that age as in its ledger."""

    def __init__(self) -> None:
        self._usage: dict[str, Usage] = {}
        self._fetches: dict[str, tuple[float, int]] = {}
        self._now = 0.0

    def fetched(self, key: str, cost: float, moved: int) -> None:
        self._fetches[key] = cost, moved

    def used(self, key: str, now: float) -> None:
        before = self._usage.get(key, Usage(0, now, 0.0))
        self._usage[key] = Usage(before.uses + 1, now, before.counts(now) + 1)

    def look(self, step: int, now: float) -> None:
        self._now = now

    def candidate(self, key: str, files: dict[str, int]) -> Candidate:
        usage, (cost, moved) = self._usage[key], self._fetches[key]
        return Candidate(key, files, usage.counts(self._now), max(0.1, cost), moved, usage.last)

    def worth(self, one: Candidate, unique: int) -> float:
        return worth(one, unique)

    def evicted(self, one: Candidate, unique: int) -> None:
        pass


class HalfLife(Ours):
    """Ours with another half-life."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def used(self, key: str, now: float) -> None:
        super().used(key, now / self._share)

    def look(self, step: int, now: float) -> None:
        super().look(step, now / self._share)


class Simple(Ours):
    """What can be said of a model by how often and when it was used since it came."""

    def __init__(self, rule: Callable[["Simple", Candidate, int], float]) -> None:
        super().__init__()
        self._rule = rule
        self.uses: dict[str, int] = {}
        self.came: dict[str, float] = {}

    def used(self, key: str, now: float) -> None:
        super().used(key, now)
        self.uses[key] = self.uses.get(key, 0) + 1
        self.came.setdefault(key, now)

    def worth(self, one: Candidate, unique: int) -> float:
        return self._rule(self, one, unique)

    def evicted(self, one: Candidate, unique: int) -> None:
        del self.uses[one.key], self.came[one.key]


class GreedyDual(Simple):
    """GDSF (Cherkasova 1998): clock + uses * cost / size; the clock is what went last was worth.

    With its seconds and its unique bytes this is what modelpack had first, but for the order in
    which what went needlessly is given back.
    """

    def __init__(self, cost: Callable[[Candidate], float]) -> None:
        super().__init__(lambda _self, one, unique: (
            self._clocks[one.key] + self.uses[one.key] * cost(one) / max(1, unique)))  # fmt: skip
        self._clock = 0.0
        self._clocks: dict[str, float] = {}

    def used(self, key: str, now: float) -> None:
        super().used(key, now)
        self._clocks[key] = self._clock

    def evicted(self, one: Candidate, unique: int) -> None:
        self._clock = max(self._clock, self.worth(one, unique))
        super().evicted(one, unique)


OURS = "modelpack"
POLICIES: dict[str, Callable[[], Ours]] = {
    OURS: Ours,
    "GDSF": lambda: GreedyDual(lambda one: one.cost),
    "GDSF, cost 1": lambda: GreedyDual(lambda _one: 1.0),
    "LFU": lambda: Simple(lambda self, one, _unique: self.uses[one.key]),
    "LRU": lambda: Simple(lambda _self, one, _unique: one.last_used),
    "FIFO": lambda: Simple(lambda self, one, _unique: self.came[one.key]),
    "largest first": lambda: Simple(lambda _self, _one, unique: -unique),
    "modelpack, uses for ever": lambda: HalfLife(1e9),
    "modelpack, half-life 12 h": lambda: HalfLife(12 * 3600 / HALF_LIFE),
    "modelpack, half-life 14 d": lambda: HalfLife(14 * 86_400 / HALF_LIFE),
}
