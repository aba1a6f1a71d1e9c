import errno
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cache_daemon.api.errors import BadStore, InUse, NoSpace, NoSuchLease, NoSuchModel
from cache_daemon.api.values import Owner
from cache_daemon.fetch.view import here
from cache_daemon.space.room import Limits
from cache_daemon.store import ledger, snapshots
from cache_daemon.store.records import write_record
from cache_daemon.store.store import Store
from modelpack.spec.errors import DiskError
from tests.cache_daemon.conftest import ROOMY, content, identity, publish, read
from tests.support.mounts import filled, memory_mount

A, B, C = (content(name, 10_000) for name in "abc")


def test_a_snapshot_is_what_was_published(store):
    """A tree of read-only files, in directories as in the artifact."""
    one = publish(store, "v1", {"model.safetensors": A, "sub/config.json": B})
    assert read(store, one.key) == {"model.safetensors": A, "sub/config.json": B}
    mode = (store.tree(one.key) / "model.safetensors").stat().st_mode
    assert mode & 0o777 == 0o444
    assert store.used() == 20_000


def test_shared_files_are_there_once(store):
    """A file of two snapshots is one inode; it goes with the last of them."""
    one = publish(store, "v1", {"a": A, "b": B})
    two = publish(store, "v2", {"x": A, "c": C})
    assert (store.tree(one.key) / "a").stat().st_ino == (store.tree(two.key) / "x").stat().st_ino
    assert store.used() == 30_000
    unique = {model.key: model.bytes_unique for model in here(store, store.snapshots())}
    assert unique[one.key] == 10_000
    assert store.remove(one.key) == 10_000
    assert read(store, two.key) == {"x": A, "c": C}
    assert store.remove(two.key) == 20_000
    assert list(store.files.all()) == []


def test_everything_is_there_after_a_restart(tmp_path, store):
    """Snapshots, leases and pins are on the disk, not in the process; the ledger only helps."""
    one = publish(store, "v1", {"a": A})
    publish(store, "v2", {"b": B})
    lease = store.lease("pod-1", one.key, Owner("pod", "p", "ns", "uid"))
    pin = store.pin(one.key, reason="because")
    before = sorted(store.snapshots(), key=lambda s: s.key)
    store.close()
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (tmp_path / "store" / name).unlink(missing_ok=True)
    again = Store(tmp_path / "store", ROOMY)
    assert sorted(again.snapshots(), key=lambda s: s.key) == before
    assert again.leases() == [lease]
    assert again.pins() == [pin]
    again.close()


def test_a_damaged_ledger_is_replaced(tmp_path, store):
    """It is only a memory of how things were used."""
    publish(store, "v1", {"a": A})
    store.close()
    (tmp_path / "store" / "ledger.sqlite-wal").unlink(missing_ok=True)
    (tmp_path / "store" / "ledger.sqlite").write_bytes(b"not a database" * 1000)
    again = Store(tmp_path / "store", ROOMY)
    assert len(again.snapshots()) == 1
    again.close()


def test_what_was_popular_is_remembered(tmp_path, store):
    """Uses of a model that was removed count when it is back; those of this stay are shown."""
    one = publish(store, "v1", {"a": A})
    store.lease("pod", one.key, Owner())
    store.release("pod")
    before = store.usage()[one.key]
    assert before.uses == 2
    store.remove(one.key)
    store.close()
    again = Store(tmp_path / "store", ROOMY)
    assert again.usage()[one.key].uses == 0
    publish(again, "v1", {"a": A})
    after = again.usage()[one.key]
    assert after.uses == 1
    assert after.counts(after.last) == pytest.approx(3, abs=0.01)
    again.close()


def test_uses_are_forgotten_after_a_month(tmp_path, store, monkeypatch):
    """The ledger does not grow for ever."""
    one = publish(store, "v1", {"a": A})
    two = publish(store, "v2", {"b": B})
    later = time.time() + 31 * 24 * 3600
    monkeypatch.setattr(ledger, "time", SimpleNamespace(time=lambda: later))
    store.remove(one.key)
    assert store.usage().keys() == {two.key}


def test_holds_keep_a_snapshot(store):
    """Neither leased nor pinned models can be removed; the error says by whom."""
    one = publish(store, "v1", {"a": A})
    store.lease("pod-1", one.key, Owner())
    assert store.lease("pod-1", one.key, Owner()).id == "pod-1"
    with pytest.raises(InUse, match="lease pod-1"):
        store.remove(one.key)
    store.release("pod-1")
    with pytest.raises(NoSuchLease):
        store.release("pod-1")
    store.pin(one.key)
    with pytest.raises(InUse, match="a pin"):
        store.remove(one.key)
    store.unpin(one.key)
    store.remove(one.key)
    with pytest.raises(NoSuchModel):
        store.lease("pod-2", one.key, Owner())


def test_a_lease_is_on_one_model(store):
    """An id that is taken for another model is refused."""
    one, two = publish(store, "v1", {"a": A}), publish(store, "v2", {"b": B})
    store.lease("pod-1", one.key, Owner())
    with pytest.raises(InUse, match="another model"):
        store.lease("pod-1", two.key, Owner())


def test_pins_run_out(store):
    """A pin with a deadline stops counting."""
    one = publish(store, "v1", {"a": A})
    store.pin(one.key, until=1.0)
    assert store.pins() == []
    store.remove(one.key)


def test_room_is_made_and_refused(tmp_path):
    """What nobody holds goes, the least useful first; else the shortfall is named, nothing goes."""
    store = Store(tmp_path / "store", Limits(keep_free=0.0, inodes_free=0.0, most=30_000))
    cheap = publish(store, "cheap", {"a": A}, seconds=1)
    dear = publish(store, "dear", {"b": B}, seconds=100)
    held = publish(store, "held", {"c": C}, seconds=1)
    store.lease("pod", held.key, Owner())
    new = publish(store, "new", {"d": content("d", 10_000)})
    assert {one.key for one in store.snapshots()} == {dear.key, held.key, new.key}
    assert not store.has(cheap.key)
    with pytest.raises(NoSpace, match="20000 bytes too few") as caught:
        publish(store, "huge", {"e": content("e", 40_000)})
    assert caught.value.shortfall == 20_000
    assert len(store.snapshots()) == 3
    store.close()


def test_files_of_a_fetch_under_way_stay(store):
    """A file that a fetch will link to stays, and counts, until the fetch ends."""
    one = publish(store, "v1", {"a": A})
    store.begin("f" * 40, {identity(A)})
    store.remove(one.key)
    store.collect()
    assert store.files.has(identity(A), len(A))
    assert store.used() == len(A)
    store.end("f" * 40)
    assert list(store.files.all()) == []
    assert store.used() == 0


@pytest.mark.parametrize("damage", ["tree", "record", "file", "truncated", "replaced"])
def test_a_snapshot_that_is_not_whole_is_not_shown(tmp_path, store, damage):
    """After a restart only trees of the very files of the store are there; the rest is removed."""
    one = publish(store, "v1", {"a": A, "b": B})
    path = store.files.path(identity(A))
    tree = store.tree(one.key)
    store.close()
    if damage == "tree":
        (tree / "a").unlink()
    elif damage == "record":
        (tree.parent / "snapshot.json").write_text("{")
    elif damage == "file":
        path.unlink()
    elif damage == "truncated":
        os.truncate(path, 5)
    else:
        (tree / "a").unlink()
        (tree / "a").write_bytes(A)
    again = Store(tmp_path / "store", ROOMY)
    assert again.snapshots() == []
    again.collect()
    assert not (again.tree(one.key)).exists()
    again.close()


def test_debris_of_a_crash_goes(tmp_path, store):
    """Half-made and half-removed snapshots never had a name."""
    publish(store, "v1", {"a": A})
    store.close()
    root = tmp_path / "store"
    shutil.copytree(next((root / "snapshots").iterdir()), root / "snapshots" / ".new-x")
    (root / "leases" / ".pod.json").write_text("{}")
    again = Store(root, ROOMY)
    assert [path.name[0] for path in (root / "snapshots").iterdir()] != ["."]
    assert list((root / "leases").iterdir()) == []
    assert len(again.snapshots()) == 1
    again.close()


def test_one_daemon_at_a_time(tmp_path, store):
    """A second one is told so."""
    with pytest.raises(BadStore, match="another daemon"):
        Store(tmp_path / "store", ROOMY)


def test_only_a_store_of_ours(tmp_path):
    """A directory with other things in it, or of a later version, is left alone."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(BadStore, match="is no cache"):
        Store(other, ROOMY)
    assert (other / "thesis.txt").read_text() == "years of work"
    later = tmp_path / "later"
    Store(later, ROOMY).close()
    (later / "format.json").write_text('{"format": "modelpack-cache", "version": 99}')
    with pytest.raises(BadStore, match="version 99"):
        Store(later, ROOMY)


def test_a_first_start_that_was_killed(tmp_path):
    """What it left is not taken for somebody else's."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".format.json").write_text("{")
    Store(tmp_path / "store", ROOMY).close()


def test_file_systems_that_cannot_hold_the_promises(tmp_path):
    """They are refused by name."""
    if not os.access("/dev/shm", os.W_OK):
        return
    with pytest.raises(BadStore, match="is on proc"):
        from cache_daemon.store import root

        root._check_file_system(Path("/proc"))


def test_a_name_that_could_not_be_made_durable_is_made_again(store, monkeypatch):
    """The disk failed between the rename and its sync: the model was not shown, and can come."""
    real, failing = snapshots.sync, [True]

    def sync(path):
        if failing and path.name == "snapshots":
            failing.clear()
            raise OSError(errno.EIO, "once")
        real(path)

    monkeypatch.setattr(snapshots, "sync", sync)
    with pytest.raises(DiskError, match="cannot publish"):
        publish(store, "v1", {"a": A})
    assert store.snapshots() == []
    one = publish(store, "v1", {"a": A})
    assert read(store, one.key) == {"a": A}


def test_what_cannot_be_removed_is_still_there(store, monkeypatch):
    """A disk that became read-only keeps its models; they can be mounted, and go later."""
    one = publish(store, "v1", {"a": A})
    store.pin(one.key)

    def rename(*_):
        raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", rename)
        with pytest.raises(DiskError, match="cannot remove"):
            store.unpin(one.key)
        assert len(store.pins()) == 1
    store.unpin(one.key)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(DiskError, match="cannot remove"):
            store.remove(one.key)
        assert store.snapshots() == [one]
    assert store.remove(one.key) == len(A)


def test_a_record_that_does_not_fit_leaves_nothing(tmp_path):
    """On a full disk its temporary file would take what little is left."""
    with memory_mount(tmp_path, "size=1m") as point:
        with filled(point):
            with pytest.raises(
                DiskError, match=r"No space left on device: 0 bytes are free of tmp"
            ):
                write_record(point / "record.json", {"a": 1})
        assert list(point.iterdir()) == []
