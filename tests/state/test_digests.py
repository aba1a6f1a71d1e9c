import os
import sqlite3
import time

import pytest

from modelpack.chunks.table import TableCache
from modelpack.state.database import Database
from modelpack.state.digests import DigestCache, FileKey, NoDigestCache


@pytest.fixture
def database(tmp_path):
    opened = Database(tmp_path / "state.sqlite")
    yield opened
    opened.close()


def age(path, seconds=60):
    """Make a file look as if it had been left alone; ctime cannot be set, so the clock is moved."""
    past = time.time() - seconds
    os.utime(path, (past, past))


@pytest.fixture
def later(monkeypatch):
    """Read files a minute after they were written."""
    real = time.time
    monkeypatch.setattr("modelpack.state.digests.time.time", lambda: real() + 60)


def cached(tables, path):
    return tables.recall(FileKey.of(path.stat()), path.name)


@pytest.fixture
def table(database, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"a" * 100_000)
    return TableCache(DigestCache(database), "blake3"), path


def test_an_unchanged_file_is_not_read_again(table, later):
    """What was digested once is remembered for exactly this state of the file."""
    tables, path = table
    first = tables.of(path, path.name)
    assert cached(tables, path).digests == first.digests


def rewrite(path):
    path.write_bytes(b"b" * 100_000)


def replace(path):
    other = path.with_name("other")
    other.write_bytes(b"b" * 100_000)
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def truncate(path):
    os.truncate(path, 99_999)


def write_and_reset_mtime(path):
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_through_mmap(path):
    import mmap

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[5:6] = b"b"
        view.flush()


@pytest.mark.parametrize(
    "change", [rewrite, replace, truncate, write_and_reset_mtime, write_through_mmap]
)
def test_every_change_is_seen(table, later, change):
    """Writing, replacing, truncating, hiding a write behind an old mtime: all lead to a new read."""
    tables, path = table
    tables.of(path, path.name)
    assert cached(tables, path) is not None
    change(path)
    assert cached(tables, path) is None
    again = tables.of(path, path.name)
    fresh = TableCache(NoDigestCache(), "blake3").of(path, path.name)
    assert again.digests == fresh.digests


def test_a_young_file_is_not_trusted(table):
    """A file written within the last two seconds may change again in the same clock tick."""
    tables, path = table
    tables.of(path, path.name)
    assert cached(tables, path) is None


def test_other_cuts_and_digests_do_not_answer(table, later):
    """What was cut or digested in another way is another record."""
    tables, path = table
    tables.of(path, path.name)
    for other in (
        TableCache(tables._cache, "sha256"),
        TableCache(tables._cache, "blake3", chunk_size=1024),
    ):
        assert cached(other, path) is None
    assert tables.recall(FileKey.of(path.stat()), "weights.safetensors") is None


def test_a_damaged_record_is_as_good_as_none(table, later, database):
    """Bits that rot in the database cost a read, never a wrong digest."""
    tables, path = table
    tables.of(path, path.name)
    database.write("UPDATE files SET record = substr(record, 1, 20) || x'00' || substr(record, 22)")
    assert cached(tables, path) is None


def test_a_file_that_is_no_database_is_no_obstacle(tmp_path):
    """A cache that cannot be opened is replaced by memory."""
    broken = tmp_path / "state.sqlite"
    broken.write_bytes(b"this is not a database" * 100)
    database = Database(broken)
    cache = DigestCache(database)
    cache.put("files", b"k", b"record")
    assert cache.get("files", b"k") == b"record"
    database.close()


def test_two_processes_share_the_file(tmp_path):
    """What one run remembered, another one knows."""
    one, two = Database(tmp_path / "s.sqlite"), Database(tmp_path / "s.sqlite")
    DigestCache(one).put("layers", b"k", b"record")
    assert DigestCache(two).get("layers", b"k") == b"record"
    one.close()
    two.close()
    with sqlite3.connect(tmp_path / "s.sqlite") as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    raw.close()
