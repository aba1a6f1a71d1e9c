"""What one node is asked for over some weeks: models, and who starts, stops, prefetches and pins.

Pure and seeded: the same arguments give the same trace. Sizes are in MB. What is modelled, and why:

- Families of models. Sizes are log-normal over two orders of magnitude (0.8 to 80 GB for 95 %), as
  between an embedding model and a 70B one. Weights come in shards of at most 5 GB.
- A new version or a variant (fine-tune, quantised) keeps files of the one before it: nearly all
  (a template or an adapter changed), half, or next to none (trained again). Of a file that changed
  some chunks are still the same: they cost disk, but no network.
- A version takes over from the one before it within a day (rolling deployment), but not entirely:
  some deployments stay where they are. A variant takes nothing from others.
- Families are asked for by Zipf's law, whatever their size; which are popular drifts from day to
  day, and there is more to do by day than by night.
- A pod holds its model as long as it lives: log-normal, half an hour at the median, days at most.
  A node has so many accelerators: what does not find one starts elsewhere. Some pods are restarted
  at once (crash, rollout), which is what makes recency a good guess.
- Scans: every few days somebody's job starts many models one after another, once each. These must
  not flush what is used daily.
- Most new versions are prefetched when they come out, before anybody asks for them; some operator
  pins what matters for a few days.
- Registries differ: one in the cluster, one across the region, one across the ocean.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import NormalDist

DAY = 86_400.0
SHARD = 5_000
SECONDS_PER_MB = (1 / 1500, 1 / 400, 1 / 80)
OVERHEAD = 2.0  # seconds that a fetch takes besides its bytes


@dataclass(frozen=True, slots=True)
class File:
    """A file: its chunks' sizes by id."""

    id: str
    chunks: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        return sum(size for _, size in self.chunks)


@dataclass(frozen=True)
class Model:
    """A version of a model, and what it costs to bring its bytes here."""

    key: str
    family: int
    files: tuple[File, ...]
    seconds_per_mb: float
    released: float  # seconds since the trace began
    variant: bool  # beside the others of its family, not instead of them

    @cached_property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Event:
    """At `time`, `kind` happens to a model: start, stop, prefetch, pin or unpin.

    `who` is the pod. `noise` is by how much the fetch is slower than it should be, if there is one.
    """

    time: float
    kind: str
    model: str
    who: str = ""
    noise: float = 1.0


@dataclass(frozen=True)
class Trace:
    """A catalogue, and the events in their order."""

    models: dict[str, Model]
    events: tuple[Event, ...]

    @cached_property
    def size(self) -> int:
        """What all models take on a disk, shared files once."""
        return sum({f.id: f.size for one in self.models.values() for f in one.files}.values())


def generate(seed: int, *, models: int = 100, days: float = 21, pods_per_day: float = 110) -> Trace:
    """Return a trace."""
    dice = random.Random(seed)
    catalogue = _catalogue(dice, models, days)
    node = _Node(dice, catalogue, days, pods_per_day)
    events = [*node.pods(), *node.scans(), *node.prefetches(), *node.pins()]
    return Trace(
        {one.key: one for one in catalogue}, tuple(sorted(events, key=lambda event: event.time))
    )


def _catalogue(dice: random.Random, count: int, days: float) -> list[Model]:
    families = max(1, round(count / 4.5))
    members = [*range(families), *dice.choices(range(families), k=count - families)]
    found: dict[int, list[Model]] = {}
    for number, family in enumerate(members):
        # Half of them are there from the beginning.
        released = 0.0 if number < count / 2 else dice.uniform(0, days) * DAY
        older = found.setdefault(family, [])
        key = f"m{number:03d}"
        if older:
            before = max(older, key=lambda one: one.released)
            made = replace(
                before,
                key=key,
                files=tuple(_changed(dice, key, before)),
                released=max(released, before.released),
                variant=dice.random() < 0.4,
            )
        else:
            # One of each quantile: a trace without large models would say little.
            quantile = (family + dice.uniform(0.05, 0.95)) / families
            size = round(8_000 * math.exp(1.15 * NormalDist().inv_cdf(quantile)))
            made = Model(key, family, tuple(_files(dice, key, size)),
                         dice.choices(SECONDS_PER_MB, (5, 3, 2))[0], released, variant=False)  # fmt: skip
        older.append(made)
    return [one for family in found.values() for one in family]


def _files(dice: random.Random, key: str, size: int) -> Iterator[File]:
    shards = math.ceil(size / SHARD)
    yield File(f"{key}/config", ((f"{key}/config/0", dice.randint(1, 8)),))
    for number in range(shards):
        yield _file(f"{key}/{number}", size // shards)


def _file(id_: str, size: int, pieces: int = 8) -> File:
    each, rest = divmod(size, pieces)
    sizes = [each + (number < rest) for number in range(pieces)]
    return File(id_, tuple((f"{id_}/{n}", size) for n, size in enumerate(sizes) if size))


def _changed(dice: random.Random, key: str, before: Model) -> Iterator[File]:
    keeps = dice.choices((0.95, 0.5, 0.0), (4, 3, 3))[0]
    keeps_chunks = dice.uniform(0.2, 0.9) if keeps else 0.0
    for number, file in enumerate(before.files):
        if number and dice.random() < keeps:
            yield file
        else:
            yield File(
                f"{key}/{number}",
                tuple(
                    (id_ if dice.random() < keeps_chunks else f"{key}/{number}/{n}", size)
                    for n, (id_, size) in enumerate(file.chunks)
                ),
            )


@dataclass
class _Node:
    """Who asks for what, on one node."""

    dice: random.Random
    catalogue: list[Model]
    days: float
    per_day: float
    accelerators: int = 8
    popularity: dict[int, float] = field(default_factory=dict)

    def pods(self) -> Iterator[Event]:
        """Yield the pods' starts and stops."""
        families = sorted({one.family for one in self.catalogue})
        self.dice.shuffle(families)
        base = {family: -math.log(rank + 1) for rank, family in enumerate(families)}
        drift = dict.fromkeys(families, 0.0)
        running: list[float] = []  # when they end
        now, day, number = 0.0, -1, 0
        again: list[tuple[float, str]] = []
        while now < self.days * DAY:
            if int(now / DAY) > day:
                day = int(now / DAY)
                drift = {f: 0.9 * value + self.dice.gauss(0, 0.6) for f, value in drift.items()}
                self.popularity = {f: math.exp(base[f] + drift[f]) for f in families}
            rhythm = 1 + 0.7 * math.sin(2 * math.pi * (now / DAY - 0.3))
            coming = now + self.dice.expovariate(self.per_day * rhythm / DAY)
            again.sort(reverse=True)
            key = ""
            if again and again[-1][0] <= coming:
                coming, key = again.pop()
            now = coming
            running = [end for end in running if end > now]
            if len(running) >= self.accelerators:
                continue
            life = min(3 * DAY, self.dice.lognormvariate(math.log(30 * 60), 1.2))
            key = key or self._asked(now)
            running.append(now + life)
            number += 1
            yield Event(now, "start", key, f"pod-{number}", self._noise())
            yield Event(now + life, "stop", key, f"pod-{number}")
            if self.dice.random() < 0.15:
                again.append((now + life + self.dice.uniform(5, 300), key))

    def scans(self) -> Iterator[Event]:
        """Yield the jobs that start many models once, each for ten minutes."""
        now = self.dice.uniform(0.3, 2) * DAY
        while now < self.days * DAY:
            here = [one.key for one in self.catalogue if one.released <= now]
            for key in self.dice.sample(here, round(len(here) * self.dice.uniform(0.2, 0.7))):
                yield Event(now, "start", key, f"scan-{now:.0f}", self._noise())
                yield Event(now + 590, "stop", key, f"scan-{now:.0f}")
                now += 600
            now += self.dice.uniform(2, 5) * DAY

    def prefetches(self) -> Iterator[Event]:
        """Yield the prefetches of new versions, minutes after they came out."""
        for one in self.catalogue:
            if one.released and self.dice.random() < 0.7:
                yield Event(one.released + 300, "prefetch", one.key, "", self._noise())

    def pins(self) -> Iterator[Event]:
        """Yield pins of what is asked for at that time, one after another."""
        now = self.dice.uniform(0, 1) * DAY
        while now < self.days * DAY:
            until = now + self.dice.uniform(1, 4) * DAY
            key = self._asked(now)
            yield Event(now, "pin", key, "", self._noise())
            yield Event(until, "unpin", key)
            now = until + self.dice.uniform(0, 2) * DAY

    def _asked(self, now: float) -> str:
        here = [one for one in self.catalogue if one.released <= now]
        weights = [self.popularity[one.family] * self._share(one, here, now) for one in here]
        return self.dice.choices([one.key for one in here], weights)[0]

    @staticmethod
    def _share(one: Model, here: list[Model], now: float) -> float:
        if one.variant:
            return 0.5
        newer = [o.released for o in here if o.family == one.family and not o.variant
                 and (o.released, o.key) > (one.released, one.key)]  # fmt: skip
        return 0.1 + 0.9 * 0.5 ** ((now - min(newer)) / (DAY / 3)) if newer else 1.0

    def _noise(self) -> float:
        return self.dice.lognormvariate(0, 0.3)
