"""Warm-up: what is in the page cache, and how much may be put there."""

import os

import pytest

from cache_daemon.space.memory import spare_memory
from cache_daemon.store.warm import Warmer
from modelpack.disk.cached import resident
from tests.cache_daemon.conftest import content, publish

MEMINFO = "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 600 kB\nHugePages_Total: 0\n"


def cool(path):
    """Write a file back and drop it from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def warmer(store):
    made = Warmer(store, 0.01)
    yield made
    made.close()


def test_a_cold_model_becomes_warm(store, warmer):
    """All of it is resident afterwards, and it is said how much was read."""
    one = publish(store, "v1", {"a": content("a", 5_000_000), "b": content("b", 123), "c": b""})
    path = store.tree(one.key) / "a"
    cool(path)
    assert resident(path) < 5_000_000
    warmed = warmer.warm(one, 60)
    assert warmed.done
    assert not warmed.short_of_memory
    assert warmed.bytes_resident == warmed.bytes_total == 5_000_123
    assert warmed.bytes_read >= 4_000_000
    assert resident(path) == 5_000_000
    assert warmer.warm(one, 60).bytes_read == 0


def test_it_stops_where_memory_ends(store, warmer, monkeypatch):
    """Nothing is read that would cost somebody else his memory, and that is said."""
    one = publish(store, "v1", {"a": content("a", 5_000_000)})
    cool(store.tree(one.key) / "a")
    monkeypatch.setattr("cache_daemon.store.warm.spare_memory", lambda _keep: 1_000_000)
    warmed = warmer.warm(one, 60)
    assert (warmed.bytes_read, warmed.done, warmed.short_of_memory) == (0, True, True)


def test_who_has_no_time_learns_how_far_it_is(store, warmer):
    """It goes on; the next call joins it."""
    one = publish(store, "v1", {"a": content("a", 5_000_000)})
    warmed = warmer.warm(one, 0)
    assert warmed.bytes_total == 5_000_000
    assert warmer.warm(one, 60).done


def host(tmp_path, membership="0::/pod\n", **files):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self/cgroup").write_text(membership)
    for name, text in files.items():
        path = groups / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, groups


def test_the_machine_keeps_a_share_of_its_memory(tmp_path):
    """What is available, less the share."""
    proc, groups = host(tmp_path)
    assert spare_memory(0.1, proc, groups) == (600 - 100) * 1024
    assert spare_memory(0.7, proc, groups) == 0


def test_a_control_group_bounds_it(tmp_path):
    """Version 2: 70 % of what is left of the limit, less the page cache that is there."""
    proc, groups = host(
        tmp_path,
        pod__memory_dot_max="400000\n",
        pod__memory_dot_current="200000\n",
        pod__memory_dot_stat="anon 100000\nfile 100000\n",
    )
    assert spare_memory(0.0, proc, groups) == int(300_000 * 0.7) - 100_000


def test_a_control_group_without_a_limit_does_not(tmp_path):
    """`max` is no number."""
    proc, groups = host(tmp_path, pod__memory_dot_max="max\n", pod__memory_dot_current="1\n")
    assert spare_memory(0.0, proc, groups) == 600 * 1024


def test_the_first_version_of_control_groups_counts_too(tmp_path):
    """Also where another controller is mounted beside."""
    proc, groups = host(
        tmp_path,
        "4:cpu:/x\n5:memory:/pod\n",
        memory__pod__memory_dot_limit_in_bytes="100000\n",
        memory__pod__memory_dot_usage_in_bytes="50000\n",
        memory__pod__memory_dot_stat="total_cache 0\n",
    )
    assert spare_memory(0.0, proc, groups) == 35_000


def test_this_machine_tells(tmp_path):
    """The real files can be read."""
    assert 0 <= spare_memory(0.0) < 1 << 50
