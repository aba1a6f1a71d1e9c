"""Which snapshots to evict: pure functions over what is known of them.

Greedy-Dual-Size-Frequency (Cherkasova 1998): a snapshot's worth is clock + uses * cost / size; the
least worth goes first and its worth becomes the clock, so that what was popular once ages.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot as eviction sees it.

    `cost` is what getting it back takes, in seconds; `files` are the sizes of its files by id.
    """

    key: str
    files: Mapping[str, int]
    uses: int
    cost: float
    worth_at_use: float  # the clock when it was last used
    last_used: float


def worth(candidate: Candidate, unique_bytes: int) -> float:
    """Return how much keeping it is worth; larger stays longer."""
    return candidate.worth_at_use + candidate.uses * candidate.cost / max(1, unique_bytes)


def choose(
    candidates: Iterable[Candidate], links: Mapping[str, int], needed: int
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
    return _without_needless(chosen, links, needed), freed


def freed_by(candidate: Candidate, links: Mapping[str, int]) -> int:
    """Return the bytes that only this snapshot holds."""
    return sum(size for id_, size in candidate.files.items() if links.get(id_, 1) <= 1)


def _without_needless(
    chosen: list[Candidate], links: Mapping[str, int], needed: int
) -> list[Candidate]:
    """Give back what was chosen before something large made it unnecessary."""
    kept = list(chosen)
    for one in chosen:
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
