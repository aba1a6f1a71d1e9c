"""Who may have how much: quotas, the share of prefetches, water marks."""

import pytest

from cache_daemon.api.errors import NoSpace
from cache_daemon.api.values import Owner
from cache_daemon.space.room import Disk, Limits
from cache_daemon.store.promises import Claim
from cache_daemon.store.store import Store
from tests.cache_daemon.conftest import content, publish

A, B, C, D = (content(name, 10_000) for name in "abcd")


@pytest.fixture
def open_store(tmp_path):
    stores = []

    def open_(**limits):
        stores.append(Store(tmp_path / "s", Limits(keep_free=0.0, inodes_free=0.0, **limits)))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


def test_a_namespace_stays_within_its_quota(open_store):
    """Its own models go, the one used longest ago first; those of others stay."""
    store = open_store(namespaces={"team": 25_000, "*": 0})
    other = publish(store, "other", {"a": D})
    one = publish(store, "v1", {"a": A}, namespace="team")
    two = publish(store, "v2", {"a": B}, namespace="team")
    store.lease("pod", one.key, Owner())
    publish(store, "v3", {"a": C}, namespace="team")
    assert not store.has(two.key)
    assert store.has(one.key)
    assert store.has(other.key)


def test_a_quota_says_what_is_missing(open_store):
    """By name and in bytes; held models are not taken away for it."""
    store = open_store(namespaces={"*": 15_000})
    one = publish(store, "v1", {"a": A}, namespace="team")
    store.pin(one.key)
    with pytest.raises(NoSpace, match=r"'team': 5000 bytes too few, its quota is 15000") as caught:
        publish(store, "v2", {"a": B}, namespace="team")
    assert caught.value.shortfall == 5_000
    assert store.has(one.key)
    publish(store, "v2", {"a": B}, namespace="another")


def test_nothing_is_evicted_in_vain(open_store):
    """A quota makes room only where there will be room in all."""
    store = open_store(namespaces={"team": 25_000}, most=30_000)
    held = publish(store, "held", {"a": content("h", 10_000)})
    store.lease("pod", held.key, Owner())
    one = publish(store, "v1", {"a": A}, namespace="team")
    with pytest.raises(NoSpace, match="after evicting all of 1 models"):
        publish(store, "v2", {"a": content("big", 21_000)}, namespace="team")
    assert store.has(one.key)


def test_what_is_on_its_way_counts_too(open_store):
    """Two fetches at once do not get past a quota that each of them would keep."""
    store = open_store(namespaces={"team": 15_000})
    store.begin("k1", ())
    store.reserve("k1", 10_000, Claim(10_000, "team"))
    store.begin("k2", ())
    with pytest.raises(NoSpace, match="'team'"):
        store.reserve("k2", 10_000, Claim(10_000, "team"))
    store.end("k1")
    store.reserve("k2", 10_000, Claim(10_000, "team"))


def test_prefetches_take_a_share_only(open_store):
    """They replace what was prefetched and not used, and never what somebody has used."""
    store = open_store(most=40_000, prefetch_share=0.5)
    used = publish(store, "used", {"a": A})
    store.lease("pod", used.key, Owner())
    store.release("pod")
    first = publish(store, "p1", {"a": B}, prefetch=True)
    second = publish(store, "p2", {"a": C}, prefetch=True)
    third = publish(store, "p3", {"a": D}, prefetch=True)
    assert store.has(used.key)
    assert store.has(third.key)
    assert not (store.has(first.key) and store.has(second.key))
    with pytest.raises(NoSpace, match="prefetches that nobody has used may take 20000"):
        publish(store, "p4", {"a": content("e", 30_000)}, prefetch=True)
    publish(store, "pod", {"a": content("e", 30_000)})


def test_room_is_made_where_others_take_it(open_store, monkeypatch):
    """When the disk fills up from elsewhere, models go until a little more than the share is free."""
    store = open_store()
    one = publish(store, "v1", {"a": A})
    held = publish(store, "v2", {"a": B})
    store.lease("pod", held.key, Owner())
    assert store.tidy().snapshots == []
    full = Disk(total=100_000, free=-1, inodes=0, inodes_free=0)
    monkeypatch.setattr("cache_daemon.store.store.disk_of", lambda _path: full)
    assert store.tidy().snapshots == [one.key]
    assert store.has(held.key)
