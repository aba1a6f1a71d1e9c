import errno
import os
import subprocess
import sys

import pytest

from modelpack.checkout.area import beside
from modelpack.checkout.journal import Journal
from modelpack.checkout.staging import Staging
from modelpack.spec.digest import Digest
from modelpack.spec.errors import DiskError, TargetConflict
from modelpack.transfer.piece import Part

ONE = Digest("sha256", "1" * 64)
TWO = Digest("sha256", "2" * 64)


def part(number, file=0):
    return Part(number, b"", 0, 4, file, number * 4, 4)


def test_what_is_complete_survives(tmp_path):
    """A second run on the same artifact finds the bytes and knows which of them count."""
    target = tmp_path / "model"
    with Staging(beside(target), ONE, 4) as staging:
        staging.allocate({0: 16})
        staging.write(0, 4, b"abcd")
        staging.complete(part(1))
        staging.write(0, 8, b"half")
    with Staging(beside(target), ONE, 4) as staging:
        assert [staging.missing(n) for n in range(4)] == [True, False, True, True]
        assert staging.path(0).read_bytes()[4:8] == b"abcd"
    assert not target.exists()


def test_another_artifact_starts_from_nothing(tmp_path):
    """What was staged of one artifact is never taken for a part of another."""
    with Staging(beside(tmp_path / "m"), ONE, 4) as staging:
        staging.allocate({0: 16})
        staging.complete(part(1))
    with Staging(beside(tmp_path / "m"), TWO, 4) as staging:
        assert all(staging.missing(n) for n in range(4))


def test_nothing_stays_where_nothing_was_complete(tmp_path):
    """A pull that failed before its first chunk leaves no trace."""
    with Staging(beside(tmp_path / "m"), ONE, 4) as staging:
        staging.allocate({0: 16})
    assert list(tmp_path.iterdir()) == []


def test_discarding_leaves_nothing(tmp_path):
    """After a pull ended well, or a hostile artifact, the staging area is gone."""
    with Staging(beside(tmp_path / "m"), ONE, 4) as staging:
        staging.allocate({0: 16})
        staging.complete(part(1))
        staging.discard()
    assert list(tmp_path.iterdir()) == []


def test_one_pull_at_a_time(tmp_path):
    """A second process is told to wait instead of writing into the first one's files."""
    with Staging(beside(tmp_path / "m"), ONE, 4) as staging:
        staging.allocate({0: 16})
        staging.complete(part(0))
        code = (
            "from pathlib import Path; from modelpack.checkout.area import beside;"
            "from modelpack.checkout.staging import Staging;"
            "from modelpack.spec.digest import Digest; import sys;"
            "Staging(beside(Path(sys.argv[1])), Digest('sha256', '1' * 64), 4)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert "another modelpack pull is writing here" in done.stderr
    with Staging(beside(tmp_path / "m"), ONE, 4):
        pass


def test_a_full_disk_is_met_before_the_first_byte(tmp_path):
    """What does not fit is refused with the exact shortfall."""
    with (
        Staging(beside(tmp_path / "m"), ONE, 4) as staging,
        pytest.raises(DiskError, match=r"needs \d+ bytes, \d+ are free: \d+ too few"),
    ):
        staging.allocate({0: 1 << 55})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_named(tmp_path, monkeypatch):
    """ENOSPC in the middle says which file, why, and that the next run continues."""
    with Staging(beside(tmp_path / "m"), ONE, 4) as staging:
        staging.allocate({0: 16})
        monkeypatch.setattr(os, "pwrite", _full)
        with pytest.raises(DiskError, match="No space left") as caught:
            staging.write(0, 0, b"data")
    assert "it continues" in caught.value.hint


def _full(*_):
    raise OSError(errno.ENOSPC, "no")


def test_a_file_is_no_directory_to_pull_into(tmp_path):
    """A target that is a file is refused."""
    (tmp_path / "m").write_text("x")
    with pytest.raises(TargetConflict, match="is a file"):
        Staging(beside(tmp_path / "m"), ONE, 4)


def test_staged_inside_where_the_parent_is_another_file_system(tmp_path):
    """A mount point is staged within, because a rename cannot leave a file system."""
    if os.stat("/dev/shm").st_dev == os.stat("/dev").st_dev:
        raise AssertionError("this test needs /dev/shm to be a mount of its own")
    import shutil
    from pathlib import Path

    shm = Path("/dev/shm")
    with Staging(beside(shm), ONE, 4) as staging:
        assert staging.root == shm / ".modelpack"
    shutil.rmtree(shm / ".modelpack", ignore_errors=True)


def test_records_from_before_a_restart_are_doubted(tmp_path, monkeypatch):
    """After another boot the journal only says what is worth hashing again."""
    journal = Journal(tmp_path / "journal", "x")
    journal.add(3)
    journal.close()
    monkeypatch.setattr("modelpack.checkout.journal._BOOT_ID", tmp_path / "other-boot")
    (tmp_path / "other-boot").write_text("another\n")
    again = Journal(tmp_path / "journal", "x")
    assert (list(again.trusted), list(again.doubtful)) == ([], [3])
    again.close()


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 50, b"modelpack journal 1 x\n123", b"modelpack journal 2 x y\n1234"]
)
def test_a_damaged_journal_is_empty(tmp_path, junk):
    """Whatever the journal holds, it can be opened and written."""
    (tmp_path / "journal").write_bytes(junk)
    journal = Journal(tmp_path / "journal", "x")
    assert not journal.trusted
    journal.add(1)
    journal.close()
    again = Journal(tmp_path / "journal", "x")
    assert list(again.trusted) == [1]
    again.close()


def test_a_torn_record_is_dropped(tmp_path):
    """A record that a full disk cut short does not shift those after it."""
    journal = Journal(tmp_path / "journal", "x")
    journal.add(1)
    journal.close()
    with (tmp_path / "journal").open("ab") as file:
        file.write(b"\7\0")
    journal = Journal(tmp_path / "journal", "x")
    journal.add(2)
    journal.close()
    again = Journal(tmp_path / "journal", "x")
    assert list(again.trusted) == [1, 2]
    again.close()


def test_a_torn_record_hides_what_follows_it(tmp_path):
    """A full disk may write a part of a record: nothing after it is taken for complete."""
    path = tmp_path / "journal"
    journal = Journal(path, "x")
    for number in (1, 2, 3):
        journal.add(number)
    journal.close()
    journal.add(4)
    data = path.read_bytes()
    path.write_bytes(data[:-13] + data[-8:])
    again = Journal(path, "x")
    assert list(again.trusted) == [1]
    again.add(9)
    again.close()
    assert list(Journal(path, "x").trusted) == [1, 9]


def test_a_short_write_ends_the_journal(tmp_path, monkeypatch):
    """It is the disk that is full, and nothing more is recorded."""
    journal = Journal(tmp_path / "journal", "x")
    journal.add(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: len(data) - 1)
        with pytest.raises(OSError, match="No space left"):
            journal.add(2)
    journal.add(3)
    assert list(Journal(tmp_path / "journal", "x").trusted) == [1]
