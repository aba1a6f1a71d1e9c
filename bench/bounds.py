"""What no policy can beat on a trace, and what one that knows the future reaches.

Belady's rule is optimal for pages of one size and cost only; for models that differ and share files
the optimum is not computable in reasonable time. So it is enclosed:

- above, by the linear relaxation of offline caching (FOO: Berger, Beckmann, Harchol-Balter 2018,
  "Practical Bounds on Optimal Caching with Variable Object Sizes"): between two accesses to the
  same bytes any fraction of them may be kept, each byte once however many models share it, and at
  no time more than fits. Its Lagrangian dual is a price per MB for each step: *any* prices give an
  upper bound, good ones are found by raising the price where too much is kept. (With one price for
  all steps this is PFOO-U.)
- below, by policies that look the next use up: the furthest goes first (Belady), the least seconds
  saved per MB and time to next use go first, or what saves less than its place costs at the prices
  of the bound. They evict through the same `choose` and obey the same holds.

What pods hold cannot be evicted by anyone and is the same for every policy, as a pod is refused
only if it does not fit beside what is held: it is taken off the capacity.
"""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from bench.simulate import Node
from bench.trace import OVERHEAD
from cache_daemon.space.evict import Candidate

ROUNDS = 600
RULES = ("Belady", "Belady, seconds and size", "Belady, prices")


@dataclass
class Problem:
    """The intervals between accesses to the same bytes, and the room at each step."""

    start: np.ndarray  # kept from this step, when nobody holds it any more ...
    end: np.ndarray  # ... to this, exclusive, when it is wanted again
    size: np.ndarray
    seconds: np.ndarray  # what one MB of it saves then
    models: np.ndarray  # and as a share of a hit
    room: np.ndarray
    free: dict[str, float]  # what is saved whatever is kept: it was held all the time
    totals: dict[str, float]

    @staticmethod
    def of(run: Node) -> "Problem":
        """Take what was asked for, and held, from a run; it is the same for all policies."""
        trace, limit, accesses, classes = run.trace, run.limit, run.accesses, run.classes
        last: dict[str, int] = {}  # the step at which a class was held last
        rows: list[tuple[int, int, int, float, float]] = []
        room = np.empty(len(accesses))
        free = {"hits": 0.0, "bytes": 0.0, "seconds": 0.0}
        totals = dict(free)
        for step, access in enumerate(accesses):
            model = trace.models[access.key]
            mine = classes.chunks[access.key]
            whole = sum(mine.values())
            cold = OVERHEAD + whole * model.seconds_per_mb
            if access.counts:
                for name, value in (("hits", 1), ("bytes", whole), ("seconds", cold)):
                    totals[name] += value
            for part, size in mine.items():
                if part not in last or not access.counts:
                    continue
                if last[part] + 1 < step:
                    rows.append((last[part] + 1, step, size, cold / whole, 1 / whole))
                else:
                    free["hits"] += size / whole
                    free["bytes"] += size
                    free["seconds"] += size * cold / whole
            held = {p: size for key in {access.key, *access.held} for p, size in classes.chunks[key].items()}  # fmt: skip
            last.update(dict.fromkeys(held, step))
            room[step] = limit - sum(held.values())
        start, end, size, seconds, models = (np.array(column) for column in zip(*rows, strict=True))
        return Problem(start, end, size, seconds, models, room, free, totals)

    def upper(self, what: str) -> tuple[float, np.ndarray]:
        """Return the most of "hits", "bytes" or "seconds" that can be had, and prices per step."""
        value = {"hits": self.models, "bytes": np.ones(len(self.size)), "seconds": self.seconds}[
            what
        ]
        steps = len(self.room)
        prices = np.full(steps, float(np.median(value)) / steps)
        best, best_prices = np.inf, prices
        for turn in range(ROUNDS):
            paid = np.concatenate(([0.0], np.cumsum(prices)))
            gain = value - (paid[self.end] - paid[self.start])
            bound = float(prices @ self.room + (self.size * np.maximum(gain, 0)).sum())
            if bound < best:
                best, best_prices = bound, prices
            kept = np.where(gain > 0, self.size, 0)
            load = np.cumsum(
                np.bincount(self.start, kept, steps + 1) - np.bincount(self.end, kept, steps + 1)
            )[:steps]
            over = np.clip(load / np.maximum(self.room, 1) - 1, -1, 1)
            prices = np.maximum(prices, 1e-15) * np.exp(over * (0.3 / (1 + turn / 30)))
        return (best + self.free[what]) / self.totals[what], best_prices


class Clairvoyant:
    """Knows the trace. `rule` is one of RULES."""

    def __init__(self, run: Node, rule: str, prices: np.ndarray) -> None:
        accesses, classes = run.accesses, run.classes
        self._trace = run.trace
        self._rule = rule
        self._order = run.steps  # the event of each access
        self._next: dict[str, list[int]] = {}
        for number, access in enumerate(accesses):
            if access.counts:
                for part in classes.files[access.key]:
                    self._next.setdefault(part, []).append(number)
        self._paid = np.concatenate(([0.0], np.cumsum(prices)))
        self._now = 0

    def fetched(self, key: str, cost: float, moved: int) -> None:
        pass

    def used(self, key: str, now: float) -> None:
        pass

    def look(self, step: int, now: float) -> None:
        self._now = bisect_right(self._order, step) - 1

    def candidate(self, key: str, files: dict[str, int]) -> Candidate:
        return Candidate(key, files, 1.0, 1.0, 0, 0.0)

    def worth(self, one: Candidate, unique: int) -> float:
        model = self._trace.models[one.key]
        value = model.seconds_per_mb + OVERHEAD / model.size
        total = 0.0
        for part, size in one.files.items():
            after = self._next.get(part, [])
            at = bisect_right(after, self._now)
            if at == len(after):
                continue
            distance = after[at] - self._now
            if self._rule == RULES[0]:
                total = max(total, 1 / distance)
            elif self._rule == RULES[1]:
                total += size * value / distance
            else:
                total += size * max(0.0, value - float(self._paid[after[at]] - self._paid[self._now]))  # fmt: skip
        return total if self._rule == RULES[0] else total / sum(one.files.values())

    def evicted(self, one: Candidate, unique: int) -> None:
        pass
