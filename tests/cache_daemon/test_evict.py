from hypothesis import given
from hypothesis import strategies as st

from cache_daemon.space.evict import HALF_LIFE, Candidate, choose, decayed, freed_by
from cache_daemon.space.room import Disk, Limits, room

SIZES = {f"f{n}": (n + 1) * 10 for n in range(8)}
candidates = st.lists(
    st.builds(
        lambda key, files, uses, cost: Candidate(
            f"k{key}", {name: SIZES[name] for name in files}, uses, cost, 0, float(key)
        ),
        st.integers(0, 1000),
        st.sets(st.sampled_from(sorted(SIZES)), min_size=1),
        st.integers(1, 9),
        st.floats(0.1, 1000),
    ),
    max_size=8,
    unique_by=lambda one: one.key,
)


def links_of(found):
    links = {}
    for one in found:
        for name in one.files:
            links[name] = links.get(name, 0) + 1
    return links


@given(candidates, st.integers(0, 600))
def test_what_is_chosen_is_enough_and_nothing_is_needless(found, needed):
    """Evicting it frees what is needed; without any one of it, it would not."""
    chosen, freed = choose(found, links_of(found), needed)
    total = sum(SIZES[name] for name in links_of(found))
    left = [one for one in found if one not in chosen]
    kept = sum(SIZES[name] for name in links_of(left))
    assert freed >= needed or (freed == total and not left)
    assert freed == total - sum(SIZES[name] for name in links_of(left))
    assert total - kept >= min(needed, total)
    for one in chosen:
        rest = sum(SIZES[name] for name in links_of([*left, one]))
        assert total - rest < needed


def one(key, files, *, uses=1.0, cost=1.0, received=0, last=1.0):
    return Candidate(key, files, uses, cost, received, last)


def order(found, links, needed):
    return [one.key for one in choose(found, links, needed)[0]]


def test_the_least_useful_goes_first():
    """Seconds of fetching per byte, times the uses; what was used longer ago where that is equal."""
    found = [
        one("often", {"c": 100}, uses=90),
        one("dear", {"b": 100}, cost=50.0),
        one("cheap", {"a": 100}, last=2.0),
        one("old", {"d": 100}, last=1.0),
    ]
    assert order(found, {}, 100) == ["old"]
    assert order(found, {}, 400) == ["old", "cheap", "dear", "often"]


def test_what_was_popular_once_ages():
    """A use counts half after three days, and no less where the clock goes backwards."""
    assert decayed(8, 0) == decayed(8, -5) == 8
    assert decayed(8, 2 * HALF_LIFE) == 2
    assert decayed(8, 1e9) == 0


def test_versions_that_share_nearly_everything_do_not_protect_each_other():
    """That little is gained without one of them does not make the large files stay."""
    found = [
        one("v1", {"weights": 10_000, "a": 1}, cost=100.0, received=10_001),
        one("v2", {"weights": 10_000, "b": 1}, cost=2.0, received=1),
        one("other", {"c": 10_000}, cost=100.0, received=10_000, uses=2),
    ]
    assert order(found, {"weights": 2, "a": 1, "b": 1, "c": 1}, 10_000) == ["v1", "v2"]


def test_what_is_worth_most_is_given_back_first():
    """Where either of two would do after all, the better one stays."""
    found = [
        one("bad", {"a": 10}, uses=1.0),
        one("good", {"b": 10}, uses=2.0),
        one("large", {"c": 90}, cost=100.0),
    ]
    assert order(found, {}, 100) == ["bad", "large"]


def test_shared_files_are_freed_with_their_last_snapshot():
    """A file that another snapshot links to is not gained."""
    assert freed_by(one("one", {"a": 100, "shared": 900}), {"a": 1, "shared": 2}) == 100


def test_room_stays_clear_of_the_thresholds_of_others():
    """A share of the disk stays free; so do inodes; an absolute bound counts too."""
    disk = Disk(total=1000, free=500, inodes=100, inodes_free=50)
    assert room(disk, 0, 0, Limits(keep_free=0.2)) == 300
    assert room(disk, 0, 100, Limits(keep_free=0.2)) == 200
    assert room(disk, 350, 0, Limits(keep_free=0.2, most=400)) == 50
    assert room(Disk(1000, 500, 100, 5), 0, 0, Limits(keep_free=0.2, inodes_free=0.07)) == 0
    assert room(Disk(1000, 500, 0, 0), 0, 0, Limits(keep_free=0.2, inodes_free=0.07)) == 300
    assert room(Disk(1000, 100, 0, 0), 0, 0, Limits(keep_free=0.2)) == -100
