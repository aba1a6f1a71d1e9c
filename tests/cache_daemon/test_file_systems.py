"""The store on real file systems: those it promises to work on, and others."""

import pytest

from cache_daemon.api.errors import BadStore
from cache_daemon.api.values import Owner
from cache_daemon.store.store import Store
from modelpack.disk.mount import Mount, mount_of
from tests.cache_daemon.conftest import ROOMY, content, publish, read
from tests.support.mounts import SHARING, loop_mount, memory_mount, overlay_mount

A, B = (content(name, 10_000) for name in "ab")


@pytest.fixture(params=[*SHARING, "ext4", "tmpfs"])
def disk(request, tmp_path):
    made = (
        memory_mount(tmp_path, "size=50m")
        if request.param == "tmpfs"
        else loop_mount(tmp_path, request.param)
    )
    with made as point:
        yield point


def test_a_store_on_each(disk):
    """Models are shown, held, there after a restart, and removed."""
    store = Store(disk / "root", ROOMY)
    one = publish(store, "v1", {"a": A, "sub/b": B})
    two = publish(store, "v2", {"a": A})
    lease = store.lease("pod", one.key, Owner())
    store.close()
    again = Store(disk / "root", ROOMY)
    assert {snapshot.key for snapshot in again.snapshots()} == {one.key, two.key}
    assert again.leases() == [lease]
    assert read(again, one.key) == {"a": A, "sub/b": B}
    assert again.remove(two.key) == 0
    again.release("pod")
    assert again.remove(one.key) == 20_000
    assert list(again.files.all()) == []
    again.close()


def test_a_path_is_on_a_mount(tmp_path):
    """Also one that is not there, and below a name that the table has to escape."""
    with memory_mount(tmp_path, "size=1m", at=tmp_path / "a b") as point:
        for path in (point, point / "none" / "at all"):
            assert mount_of(path) == Mount("tmpfs", "tmpfs", str(point))
        assert mount_of(tmp_path / "a").point != str(point)


def test_others_are_refused_by_name(tmp_path):
    """The root of a container is an overlay: links and renames there do not mean the same."""
    with overlay_mount(tmp_path) as point:
        with pytest.raises(BadStore, match="is on overlay; expected one of ext4, xfs, btrfs, tmp"):
            Store(point / "root", ROOMY)
