"""The memory of how models were used is a hint: no disk can make it raise."""

import pytest

from cache_daemon.store.ledger import Ledger
from tests.support.mounts import filled, loop_mount, memory_mount, read_only


@pytest.fixture
def ledger(tmp_path):
    opened = []

    def open_(path):
        opened.append(Ledger(path))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk(kind, ledger, tmp_path, caplog):
    """Uses are not noted, and one line says so; with space again they are."""
    made = memory_mount(tmp_path, "size=2m") if kind == "tmpfs" else loop_mount(
        tmp_path, kind, megabytes=10
    )  # fmt: skip
    with made as point:
        one = ledger(point / "ledger.sqlite")
        one.touch("a")
        with filled(point):
            for number in range(2000):
                one.touch(f"{number:040}")
            one.gone("a")
            assert "a" in one.usage()
        assert [record.message for record in caplog.records] == [
            "uses of models are not noted: database or disk is full"
        ]
        one.touch("b")
        assert one.usage()["b"].uses == 1
        one.close()
        assert ledger(point / "ledger.sqlite").usage().keys() >= {"a", "b"}


def test_a_disk_on_which_it_cannot_be_opened(ledger, tmp_path, caplog):
    """It is kept in memory, and what was on the disk is left alone."""
    with loop_mount(tmp_path, "ext4", megabytes=10) as point:
        one = ledger(point / "ledger.sqlite")
        one.touch("a")
        one.close()
        with read_only(point):
            one = ledger(point / "ledger.sqlite")
            one.touch("b")
            assert one.usage().keys() == {"b"}
            one.close()
        with filled(point):
            one = ledger(point / "another.sqlite")
            one.touch("c")
            assert one.usage().keys() == {"c"}
            one.close()
        again = ledger(point / "ledger.sqlite")
        assert again.usage().keys() == {"a"}
        again.close()
    assert len([r for r in caplog.records if "is kept in memory" in r.message]) == 2


def test_no_memory_is_mapped(ledger, tmp_path):
    """Touching a mapped page of a disk that has died would kill the daemon."""
    ledger(tmp_path / "ledger.sqlite").touch("a")
    assert not (tmp_path / "ledger.sqlite-shm").exists()
    with open("/proc/self/maps") as maps:
        assert "ledger.sqlite" not in maps.read()
