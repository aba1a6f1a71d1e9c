"""Processes that die, and processes that work on one layout at the same time."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelpack.oci import layout_lock
from modelpack.oci.layout import LayoutRepository
from modelpack.spec.errors import BadSource, IntegrityError, Unavailable
from modelpack.spec.progress import QUIET
from tests.contract.contents import MIB, Watched, blob_of, moved_by_putting, put, put_image, read
from tests.support.servers import ROOT

DATA = bytes(range(256)) * (6 * MIB // 256)


@pytest.fixture
def layout(tmp_path):
    repository = LayoutRepository(tmp_path / "layout")
    yield repository
    repository.close()


@pytest.fixture
def uploads(tmp_path):
    return tmp_path / "layout/.modelpack/uploads"


@pytest.fixture
def quick():
    """A directory where fsync costs nothing."""
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as directory:
        yield Path(directory)


def python(script, *arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, (*script, *arguments))],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, **options,
    )  # fmt: skip


def test_death_at_every_step(quick):
    """Killed before any of its steps, a push leaves a sound layout, and is simply run again."""
    with python(["-m", "tests.contract.crash"], quick) as running:
        output = running.communicate()[0]
    assert running.returncode == 0
    assert int(output) > 150  # it died that many times


STUCK = """
import sys
from pathlib import Path
from modelpack.oci.layout import LayoutRepository
from tests.contract.contents import *
class Stuck(Watched):
    def read_from(self, offset):
        yield self.data[:MIB]
        yield self.data[MIB:2 * MIB]
        print("half-way", flush=True)
        sys.stdin.read()
LayoutRepository(Path(sys.argv[1])).put_blob(Stuck(bytes(range(256)) * (6 * MIB // 256)), QUIET)
"""


def test_kill_in_the_middle_of_a_blob(layout, uploads, tmp_path):
    """After kill -9 nothing is to be seen of the blob, and the next run reads only the rest."""
    with python(["-c", STUCK], tmp_path / "layout", stdin=subprocess.PIPE) as running:
        assert running.stdout.readline() == "half-way\n"
        running.kill()
    assert layout.stat_blob(blob_of(DATA).digest) is None
    assert list((tmp_path / "layout").glob("blobs/*/*")) == []
    content = Watched(DATA)
    assert moved_by_putting(layout, content) == 4 * MIB
    assert content.offsets == [2 * MIB]
    assert read(layout, content.blob) == DATA
    assert list(uploads.iterdir()) == []


def test_two_processes_put_one_blob(layout, tmp_path):
    """A second put of a blob waits for the first, and goes on where that one is killed."""
    with python(["-c", STUCK], tmp_path / "layout", stdin=subprocess.PIPE) as running:
        assert running.stdout.readline() == "half-way\n"
        content = Watched(DATA)
        waiting = threading.Thread(target=layout.put_blob, args=(content, QUIET))
        waiting.start()
        assert content.offsets == []
        running.kill()
        waiting.join()
    assert content.offsets == [2 * MIB]
    assert read(layout, content.blob) == DATA


def test_nobody_waits_for_ever(layout, tmp_path, monkeypatch):
    """If the holder of a blob does nothing for long, the second gives up and says what to do."""
    monkeypatch.setattr(layout_lock, "_PATIENCE_SECONDS", 0.0)
    with python(["-c", STUCK], tmp_path / "layout", stdin=subprocess.PIPE) as running:
        assert running.stdout.readline() == "half-way\n"
        with pytest.raises(Unavailable, match="another process holds it") as caught:
            put(layout, DATA)
        assert "fuser" in caught.value.hint
        running.kill()


def test_power_loss_in_the_middle_of_a_blob(layout, uploads):
    """A partial file that holds anything at all is noticed and the blob is read anew."""
    with pytest.raises(KeyboardInterrupt):
        layout.put_blob(Watched(DATA, fail_at=3 * MIB, error=KeyboardInterrupt()), QUIET)
    (partial,) = uploads.iterdir()
    partial.write_bytes(bytes(3 * MIB))
    content = Watched(DATA)
    assert moved_by_putting(layout, content) == len(DATA)
    assert content.offsets == [3 * MIB, 0]
    assert read(layout, content.blob) == DATA


@pytest.mark.parametrize("size", [0, 6 * MIB, 7 * MIB])
def test_partial_files_of_any_length(layout, uploads, size):
    """A partial file that is empty, already whole or too long is dealt with."""
    layout.put_blob(Watched(b"first"), QUIET)
    name = blob_of(DATA).digest.replace(":", "-")
    (uploads / name).write_bytes((DATA + DATA)[:size])
    content = Watched(DATA)
    moved = moved_by_putting(layout, content)
    assert (moved, content.offsets) == ((0, []) if size == len(DATA) else (len(DATA), [0]))
    assert read(layout, content.blob) == DATA
    assert list(uploads.iterdir()) == []


def test_wrong_bytes_leave_no_partial_file(layout, uploads):
    """What turned out to be wrong, or has changed, is not kept to be continued."""
    with pytest.raises(IntegrityError):
        layout.put_blob(Watched(DATA, told=DATA[::-1]), QUIET)
    with pytest.raises(BadSource):
        layout.put_blob(Watched(DATA, fail_at=3 * MIB, error=BadSource("changed")), QUIET)
    assert list(uploads.iterdir()) == []


class Held:
    """Content that stops half-way until it is let go, and then may turn out wrong."""

    def __init__(self, told: bytes) -> None:
        self.blob = blob_of(DATA)
        self.told = told
        self.reached, self.go = threading.Event(), threading.Event()

    def read_from(self, offset):
        yield self.told[offset:MIB]
        self.reached.set()
        self.go.wait()
        yield self.told[MIB:]


@pytest.mark.parametrize(("told", "offsets"), [(DATA, []), (DATA[:-1] + b"x", [0])])
def test_a_second_put_waits_for_the_first(layout, uploads, monkeypatch, told, offsets):
    """A thread that waits for another's put reads nothing if that one succeeds, else all of it."""
    waits = threading.Event()
    lock = layout_lock.try_lock

    def watched(*arguments):
        free = lock(*arguments)
        if not free:
            waits.set()
        return free

    first, second = Held(told), Watched(DATA)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(layout.put_blob, first, QUIET)
        assert first.reached.wait(60)
        monkeypatch.setattr(layout_lock, "try_lock", watched)
        two = pool.submit(layout.put_blob, second, QUIET)
        assert waits.wait(60)
        first.go.set()
        assert (one.exception() is None) == (told == DATA)
        two.result()
    assert second.offsets == offsets
    assert read(layout, second.blob) == DATA
    assert list(uploads.iterdir()) == []


def test_bytes_are_on_disk_before_they_have_a_name(layout, monkeypatch):
    """Every file is fsynced between its last write and its rename, its directory after that."""
    unsynced, renamed = set(), set()
    write, fsync, rename = os.write, os.fsync, os.rename

    def writing(fd, data):
        unsynced.add(os.fstat(fd).st_ino)
        return write(fd, data)

    def syncing(fd):
        unsynced.discard(os.fstat(fd).st_ino)
        renamed.discard(os.fstat(fd).st_ino)
        fsync(fd)

    def renaming(source, target):
        assert Path(source).stat().st_ino not in unsynced
        renamed.add(Path(target).parent.stat().st_ino)
        rename(source, target)

    monkeypatch.setattr(os, "write", writing)
    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    put(layout, DATA)
    assert not renamed
    put_image(layout, b"layer", tag="v1")
    assert not renamed
    assert not unsynced
    layout.delete_manifest("v1")
    assert not renamed


class Expecting:
    """A progress whose sums must agree at the end."""

    def __init__(self) -> None:
        self.expected = self.done = 0

    def expect(self, bytes_) -> None:
        self.expected += bytes_

    def advance(self, bytes_) -> None:
        self.done += bytes_


def test_progress_adds_up(layout, uploads):
    """Whatever happens to a blob, in the end as much was done as was expected."""
    content = Watched(DATA, fail_at=3 * MIB, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        layout.put_blob(content, QUIET)
    for damage in (False, True, False):
        for partial in uploads.iterdir() if damage else ():
            partial.write_bytes(bytes(2 * MIB))
        progress = Expecting()
        progress.expect(len(DATA))
        layout.put_blob(Watched(DATA), progress)
        assert progress.done == progress.expected
        path = uploads.parent.parent / "blobs" / content.blob.digest.replace(":", "/")
        if not damage:
            path.unlink(missing_ok=True)
            uploads.joinpath(content.blob.digest.replace(":", "-")).write_bytes(bytes(MIB))


PUSHER = """
import sys
from pathlib import Path
from modelpack.oci.layout import LayoutRepository
from tests.contract.contents import *
layout = LayoutRepository(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(25):
    put_image(layout, b"shared", f"{sys.argv[2]}{number}".encode(), tag=f"{sys.argv[2]}{number}")
    if number % 5 == 4:
        layout.delete_manifest(f"{sys.argv[2]}{number}")
layout.close()
"""


def test_two_processes_push_and_remove(quick):
    """Two processes that push into one new layout, and remove, lose nothing of each other."""
    layout = LayoutRepository(quick / "layout")
    with (
        python(["-c", PUSHER], quick / "layout", "a", stdin=subprocess.PIPE) as one,
        python(["-c", PUSHER], quick / "layout", "b", stdin=subprocess.PIPE) as two,
    ):
        for process in (one, two):
            assert process.stdout.readline() == "ready\n"
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in (one, two):
            process.communicate()
    assert (one.returncode, two.returncode) == (0, 0)
    kept = [f"{who}{number}" for who in "ab" for number in range(25) if number % 5 != 4]
    assert layout.tags() == sorted(kept)
    for tag in kept:
        layers = json.loads(layout.manifest(tag)[1])["layers"]
        assert read(layout, blob_of(b"shared")) == b"shared"
        assert [layer["digest"] for layer in layers] == [
            blob_of(b"shared").digest, blob_of(tag.encode()).digest
        ]  # fmt: skip
        assert read(layout, blob_of(tag.encode())) == tag.encode()
    put_image(layout, tag="last")
    layout.delete_manifest("last")
    # A layer and a manifest of each tag, the shared layer and the config.
    assert len(list((quick / "layout/blobs/sha256").iterdir())) == 2 * len(kept) + 2
    layout.close()
