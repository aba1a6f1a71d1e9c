"""Both upload logs keep the same promises."""

import os
import subprocess
import sys

import pytest

from modelpack.oci.upload_log import MemoryUploadLog
from modelpack.state.database import Database
from modelpack.state.uploads import DatabaseUploadLog

KEY, PLACE = "registry.example/a/b@sha256:1", "https://registry.example/v2/a/b/blobs/uploads/1"


@pytest.fixture(params=["memory", "database"])
def log(request, tmp_path):
    if request.param == "memory":
        yield MemoryUploadLog()
        return
    database = Database(tmp_path / "state.sqlite")
    yield DatabaseUploadLog(database)
    database.close()


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "state.sqlite")
    yield database
    database.close()


def test_nothing_is_known_of_what_was_never_put(log):
    """An unknown upload has no location, and can be released and dropped."""
    assert log.claim(KEY) == ""
    log.release(KEY)
    log.drop(KEY)


def test_one_at_a_time(log):
    """A session belongs to who put it until it is released, then to the first who claims it."""
    log.put(KEY, PLACE)
    assert log.claim(KEY) == ""
    log.release(KEY)
    assert log.claim(KEY) == PLACE
    assert log.claim(KEY) == ""


def test_the_last_location_counts(log):
    """A session moves with every chunk."""
    log.put(KEY, "before")
    log.put(KEY, PLACE)
    log.release(KEY)
    assert log.claim(KEY) == PLACE


def test_what_is_dropped_is_forgotten(log):
    """A finished upload leaves nothing, and a new one can take its place."""
    log.put(KEY, PLACE)
    log.drop(KEY)
    assert log.claim(KEY) == ""
    log.put(KEY, "again")
    log.release(KEY)
    assert log.claim(KEY) == "again"


def test_keys_are_apart(log):
    """Another repository's upload of the same blob is another one."""
    log.put(KEY, PLACE)
    log.release(KEY)
    assert log.claim("registry.example/c/d@sha256:1") == ""


@pytest.mark.parametrize(("age", "known"), [(23 * 3600, True), (25 * 3600, False)])
def test_old_sessions_are_not_continued(database, age, known):
    """After a day a session is no longer believed in."""
    now = 1e9
    log = DatabaseUploadLog(database, clock=lambda: now)
    log.put(KEY, PLACE)
    log.release(KEY)
    now += age
    assert (log.claim(KEY) == PLACE) == known


ELSEWHERE = """
import sys
from pathlib import Path
from modelpack.state.database import Database
from modelpack.state.uploads import DatabaseUploadLog

log = DatabaseUploadLog(Database(Path(sys.argv[1])))
log.put(sys.argv[2], sys.argv[3])
print("put", flush=True)
sys.stdin.read()
"""


def test_sessions_of_other_processes(database, tmp_path):
    """While another process lives its session is left to it; killed, it leaves it to us."""
    with subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "state.sqlite", KEY, PLACE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"put\n"
        log = DatabaseUploadLog(database)
        assert log.claim(KEY) == ""
        other.kill()
        other.wait()
        assert log.claim(KEY) == PLACE


def test_a_process_of_the_same_number_is_another_one(database):
    """A number that is in use again, after a restart of the machine say, is not the old process."""
    database.write("INSERT INTO uploads VALUES (?, ?, 9e9, ?)", KEY, PLACE, f"{os.getpid()} 1 boot")
    assert DatabaseUploadLog(database).claim(KEY) == PLACE


def test_a_database_that_cannot_be_used(tmp_path):
    """Without a database uploads are not continued, and nothing fails."""
    database = Database(tmp_path / "state.sqlite")
    database.close()
    log = DatabaseUploadLog(database)
    log.put(KEY, PLACE)
    assert log.claim(KEY) == ""
