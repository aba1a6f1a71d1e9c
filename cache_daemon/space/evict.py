"""Which snapshots to evict: pure functions over what is known of them.

A snapshot is worth the seconds that fetching it took, times its uses, per byte: a use counts half
as much after three days, and the bytes are those that the fetch received or those that only it
holds, whichever are more. The least worth goes first. `bench/eviction.py` compares this with other
policies and with what a policy could reach that knows the future.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

HALF_LIFE: Final = 3 * 24 * 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot as eviction sees it.

    `files` are the sizes of its files by id, `uses` is `decayed`. `cost` is what its fetch took, in
    seconds, for the bytes it `received`; the other bytes were on the node already.
    """

    key: str
    files: Mapping[str, int]
    uses: float
    cost: float
    received: int
    last_used: float


Worth = Callable[[Candidate, int], float]


def worth(candidate: Candidate, unique_bytes: int) -> float:
    """Return how much keeping it is worth; larger stays longer.

    Per unique byte alone, two versions that share nearly everything would protect each other for
    ever: without either of them little is gained.
    """
    return candidate.uses * candidate.cost / max(1, unique_bytes, candidate.received)


def decayed(uses: float, seconds: float) -> float:
    """Return what uses still count after some time."""
    return uses * math.exp2(-max(0.0, seconds) / HALF_LIFE)


def choose(
    candidates: Iterable[Candidate], links: Mapping[str, int], needed: int, worth: Worth = worth
) -> tuple[list[Candidate], int]:
    """Choose what to evict until `needed` bytes are free; returns it with the bytes it frees.

    `links` says how many snapshots of the store use each file: a shared file is freed only with
    the last of them. What is returned may free less than needed: then all of it would not do.
    """
    left = list(candidates)
    remaining = dict(links)
    chosen: list[Candidate] = []
    freed = 0
    while left and freed < needed:
        victim = min(left, key=lambda one: (worth(one, freed_by(one, remaining)), one.last_used))
        left.remove(victim)
        freed += freed_by(victim, remaining)
        for id_ in victim.files:
            remaining[id_] = remaining.get(id_, 1) - 1
        chosen.append(victim)
    kept = _without_needless(chosen, links, needed)
    return kept, _freed(kept, links)


def freed_by(candidate: Candidate, links: Mapping[str, int]) -> int:
    """Return the bytes that only this snapshot holds."""
    return sum(size for id_, size in candidate.files.items() if links.get(id_, 1) <= 1)


def _without_needless(
    chosen: list[Candidate], links: Mapping[str, int], needed: int
) -> list[Candidate]:
    """Give back what something large made unnecessary, what is worth most first."""
    kept = list(chosen)
    for one in reversed(chosen):
        rest = [other for other in kept if other is not one]
        if _freed(rest, links) >= needed:
            kept = rest
    return kept


def _freed(chosen: Collection[Candidate], links: Mapping[str, int]) -> int:
    remaining = dict(links)
    freed = 0
    for one in chosen:
        freed += freed_by(one, remaining)
        for id_ in one.files:
            remaining[id_] = remaining.get(id_, 1) - 1
    return freed
