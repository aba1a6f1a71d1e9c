from hypothesis import given
from hypothesis import strategies as st

from cache_daemon.space.evict import Candidate, choose, freed_by
from cache_daemon.space.room import Disk, Limits, room

SIZES = {f"f{n}": (n + 1) * 10 for n in range(8)}
candidates = st.lists(
    st.builds(
        lambda key, files, uses, cost: Candidate(
            f"k{key}", {name: SIZES[name] for name in files}, uses, cost, 0.0, float(key)
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
    assert total - kept >= min(needed, total)
    for one in chosen:
        rest = sum(SIZES[name] for name in links_of([*left, one]))
        assert total - rest < needed


def test_the_least_useful_goes_first():
    """Seconds of fetching per byte that only it holds, times its uses."""
    cheap = Candidate("cheap", {"a": 100}, 1, 1.0, 0.0, 2.0)
    dear = Candidate("dear", {"b": 100}, 1, 50.0, 0.0, 1.0)
    often = Candidate("often", {"c": 100}, 90, 1.0, 0.0, 1.0)
    links = {"a": 1, "b": 1, "c": 1}
    order = [
        [one.key for one in choose([often, dear, cheap], links, needed)[0]]
        for needed in (100, 200, 300)
    ]
    assert order == [["cheap"], ["cheap", "dear"], ["cheap", "dear", "often"]]


def test_what_was_popular_once_ages():
    """The clock lets newcomers in."""
    old = Candidate("old", {"a": 100}, 50, 1.0, 0.0, 1.0)
    new = Candidate("new", {"b": 100}, 1, 1.0, 0.6, 2.0)
    assert [one.key for one in choose([old, new], {}, 1)[0]] == ["old"]


def test_shared_files_are_freed_with_their_last_snapshot():
    """A file that another snapshot links to is not gained."""
    one = Candidate("one", {"a": 100, "shared": 900}, 1, 1.0, 0.0, 1.0)
    assert freed_by(one, {"a": 1, "shared": 2}) == 100


def test_room_stays_clear_of_the_thresholds_of_others():
    """A share of the disk stays free; so do inodes; an absolute bound counts too."""
    disk = Disk(total=1000, free=500, inodes=100, inodes_free=50)
    assert room(disk, 0, 0, Limits(keep_free=0.2)) == 300
    assert room(disk, 0, 100, Limits(keep_free=0.2)) == 200
    assert room(disk, 350, 0, Limits(keep_free=0.2, most=400)) == 50
    assert room(Disk(1000, 500, 100, 5), 0, 0, Limits(keep_free=0.2, inodes_free=0.07)) == 0
    assert room(Disk(1000, 500, 0, 0), 0, 0, Limits(keep_free=0.2, inodes_free=0.07)) == 300
    assert room(Disk(1000, 100, 0, 0), 0, 0, Limits(keep_free=0.2)) == -100
