"""Pulls that are killed, raced, lied to or let down by the disk at one chosen instant."""

import json
import os

import msgspec
import pytest

from modelpack.checkout import indexed
from modelpack.checkout.area import beside
from modelpack.checkout.artifact import read_artifact
from modelpack.checkout.indexed import IndexedCheckout
from modelpack.checkout.staging import Staging
from modelpack.spec import media, names
from modelpack.spec.digest import Digest
from modelpack.spec.errors import DiskError, TargetConflict
from modelpack.spec.index import ChunkIndex
from modelpack.spec.manifest import Manifest, describe, encode
from modelpack.spec.progress import QUIET
from modelpack.spec.reference import Reference
from modelpack.spec.source import Bytes
from modelpack.state.placed import Placed
from modelpack.verbs.pull import PullOptions, pull
from modelpack.verbs.push import PushOptions, push
from modelpack.verbs.verify import verify
from tests.support.weights import tree


class Killed(BaseException):
    """kill -9, at one instant."""


@pytest.fixture
def publish(tmp_path, session):
    """Push files (name -> bytes) under a tag of a layout."""

    def publish_(tag, files, **options):
        source = tmp_path / f"source-{tag}"
        source.mkdir()
        for name, data in files.items():
            (source / name).write_bytes(data)
        reference = Reference.parse(f"oci:{tmp_path / 'layout'}:{tag}")
        push(str(source), reference, session(), PushOptions(**options))
        return reference

    return publish_


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def killed_between_names_and_memory(monkeypatch, session, out):
    """Run a pull that is killed after its files have their names, before that is remembered."""

    def run(reference):
        with monkeypatch.context() as patch:

            def kill(*_):
                raise Killed

            patch.setattr(Placed, "add", kill)
            with pytest.raises(Killed):
                pull(reference, out, session(), PullOptions())

    return run


def test_files_of_a_killed_pull_are_ours(publish, session, out, killed_between_names_and_memory):
    """The same command succeeds; the next version replaces and removes them without asking."""
    one = publish("v1", {f"s{n}.txt": b"v1%d" % n for n in range(3)})
    two = publish("v2", {"s0.txt": b"v2"})
    killed_between_names_and_memory(one)
    assert pull(one, out, session(), PullOptions()).bytes_moved == 0
    assert pull(two, out, session(), PullOptions()).removed == ["s1.txt", "s2.txt"]
    assert contents(out) == {"s0.txt": b"v2"}


def test_the_next_version_knows_them_at_once(
    publish, session, out, killed_between_names_and_memory
):
    """Even where nothing of the killed version is pulled again first."""
    one = publish("v1", {f"s{n}.txt": b"v1%d" % n for n in range(3)})
    two = publish("v2", {"s0.txt": b"v10"})
    killed_between_names_and_memory(one)
    assert pull(two, out, session(), PullOptions()).removed == ["s1.txt", "s2.txt"]
    assert contents(out) == {"s0.txt": b"v10"}


def test_files_of_a_killed_pull_without_an_index(
    publish, session, out, killed_between_names_and_memory, monkeypatch
):
    """Whole layers, too."""
    one = publish("v1", {"a.txt": b"A", "b.txt": b"B"}, modelpack_form=True)
    monkeypatch.setattr("modelpack.checkout.artifact._index_beside", lambda *_: None)
    killed_between_names_and_memory(one)
    pull(one, out, session(), PullOptions())
    assert contents(out) == {"a.txt": b"A", "b.txt": b"B"}


def test_edited_after_a_killed_pull_is_the_users(
    publish, session, out, killed_between_names_and_memory
):
    """What was edited since is never destroyed, whatever was about to be remembered."""
    one = publish("v1", {"a.txt": b"A"})
    two = publish("v2", {"a.txt": b"B"})
    killed_between_names_and_memory(one)
    (out / "a.txt").write_bytes(b"mine")
    with pytest.raises(TargetConflict):
        pull(two, out, session(), PullOptions())
    assert contents(out) == {"a.txt": b"mine"}


def test_two_pulls_at_once(publish, session, out, monkeypatch):
    """While one looks at what is in place, another cannot change it."""
    one = publish("v1", {"a.txt": b"A1", "only1.txt": b"x"})
    two = publish("v2", {"a.txt": b"A2", "only2.txt": b"y"})
    pull(one, out, session(), PullOptions())
    look = IndexedCheckout.kept

    def kept(self, *arguments):
        found = look(self, *arguments)
        with monkeypatch.context() as patch:
            patch.setattr(IndexedCheckout, "kept", look)
            with pytest.raises(TargetConflict, match="another modelpack pull"):
                pull(two, out, session(), PullOptions())
        return found

    monkeypatch.setattr(IndexedCheckout, "kept", kept)
    pull(one, out, session(), PullOptions())
    assert contents(out) == {"a.txt": b"A1", "only1.txt": b"x"}


def test_a_failed_sync_is_never_forgotten(publish, session, out, tmp_path, monkeypatch):
    """The kernel reports a lost write once: the file is fetched again, not believed."""
    one = publish("v1", {"a.bin": os.urandom(50_000)})
    with monkeypatch.context() as patch:

        def fail(path):
            path.write_bytes(bytes(50_000))  # what the disk has now
            raise OSError(5, "Input/output error")

        patch.setattr(indexed, "sync", fail)
        with pytest.raises(DiskError, match="Input/output error"):
            pull(one, out, session(), PullOptions())
    assert not out.exists()
    assert pull(one, out, session(), PullOptions()).bytes_moved >= 50_000
    assert tree(out) == tree(tmp_path / "source-v1")


def test_a_discarded_area_is_not_touched_again(tmp_path):
    """Between the end of one pull and its very last step another one may have begun."""
    artifact = Digest("sha256", "1" * 64)
    target = tmp_path / "out"
    with Staging(beside(target), artifact, 4) as first:
        first.allocate({0: 16})
        first.discard()
        with Staging(beside(target), artifact, 4) as second:
            second.allocate({0: 16})
            first.__exit__(None, None, None)
            assert second.path(0).exists()
            assert (second.root / "lock").exists()
            first._lock = os.open(os.devnull, os.O_RDONLY)  # closed a second time below


@pytest.mark.parametrize("trap", ["owner", "mode", "file"])
def test_an_area_that_others_can_write_to(publish, session, out, tmp_path, trap):
    """In a shared directory somebody may have guessed its name: nothing in it is believed."""
    one = publish("v1", {"a.bin": b"model"})
    area = beside(out)
    area.mkdir(mode=0o700)
    digest = pull(one, tmp_path / "other", session(), PullOptions()).digest[7:39]
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    if trap == "owner":
        (area / digest).mkdir()
        (area / digest / "0").symlink_to(victim)
        os.chown(area, 1000, 1000)
    elif trap == "mode":
        area.chmod(0o777)
    else:
        (area / digest).mkdir()
        (area / digest).chmod(0o700)
        (area / digest / "0").symlink_to(victim)
    with pytest.raises((TargetConflict, DiskError)):
        pull(one, out, session(), PullOptions())
    assert victim.read_bytes() == b"precious"
    assert not out.exists()


def test_a_selection_without_an_index_removes_nothing(publish, session, out, monkeypatch):
    """Files of the same artifact that were not selected this time are not stale."""
    one = publish("v1", {"a.json": b"{}", "w.bin": b"weights"}, modelpack_form=True)
    monkeypatch.setattr("modelpack.checkout.artifact._index_beside", lambda *_: None)
    pull(one, out, session(), PullOptions())
    assert pull(one, out, session(), PullOptions(include=("*.json",))).removed == []
    assert sorted(contents(out)) == ["a.json", "w.bin"]


@pytest.fixture
def forged(publish, session):
    """A ModelPack artifact whose index beside it swaps two names; returns (reference, files)."""
    files = {"modeling.py": b'print("good")\n', "README.md": b"an example of what not to run\n"}
    one = publish("v1", files, modelpack_form=True)
    with session().repository(one) as repository:
        artifact = read_artifact(repository, "v1")
        index, header = artifact.index, artifact.index.header
        swapped = {"modeling.py": "NOTES.md", "README.md": "modeling.py"}
        layers = tuple(
            msgspec.structs.replace(
                layer,
                files=tuple(
                    msgspec.structs.replace(file, path=swapped.get(file.path, file.path))
                    for file in layer.files
                ),
            )
            for layer in header.layers
        )
        header = msgspec.structs.replace(header, layers=layers)
        data = ChunkIndex(header, index.lengths, index.stored, index._digests).encode()
        (referrer,) = repository.referrers(str(artifact.digest), names.INDEX_ARTIFACT_TYPE)
        old = msgspec.json.decode(repository.manifest(referrer.digest)[1], type=Manifest)
        blob = describe(old.layers[0].media_type, data)
        repository.put_blob(Bytes(blob, data), QUIET)
        repository.delete_manifest(referrer.digest)
        new = msgspec.structs.replace(old, layers=(blob,))
        repository.put_manifest(encode(new), media.OCI_MANIFEST)
    return one, files


def test_an_index_beside_cannot_rename_files(forged, session, out):
    """Names come from the manifest, which the digest covers; so does what verify compares."""
    reference, files = forged
    pull(reference, out, session(), PullOptions())
    assert contents(out) == files
    assert "good" in (out / "modeling.py").read_text()


def test_what_was_pulled_whole_is_not_compared_with_another_index(publish, session, out):
    """The memory of the last pull is that of the last pull, or none."""
    one = publish("v1", {"a.txt": b"A"})
    pull(one, out, session(), PullOptions())
    assert verify(out, session()).ok
    two = publish("v2", {"a.txt": b"B"}, modelpack_form=True)
    pull(two, out, session(), PullOptions())
    assert verify(out, session(), reference=two).ok
    (out / "a.txt").write_bytes(b"C")
    assert not verify(out, session(), reference=two).ok


def test_every_name_on_the_way_is_durable(publish, session, tmp_path, monkeypatch):
    """Directories that a pull makes are synced into their parents, up to what was there."""
    synced = []
    real = os.fsync

    def fsync(fd):
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    one = publish("v1", {"a.txt": b"A"})
    pull(one, tmp_path / "x" / "y" / "out", session(), PullOptions())
    for directory in (tmp_path, tmp_path / "x", tmp_path / "x" / "y", tmp_path / "x" / "y" / "out"):
        assert str(directory) in synced
    synced.clear()
    pull(one, tmp_path / "x" / "y" / "out", session(), PullOptions())
    assert str(tmp_path / "x" / "y" / "out" / "a.txt") in synced


def test_a_copy_mends_a_truncated_blob(publish, session, tmp_path):
    """A blob of another size is not there."""
    from modelpack.verbs.copy import copy

    one = publish("v1", {"a.bin": os.urandom(1000)})
    goal = Reference.parse(f"oci:{tmp_path / 'goal'}:v1")
    done = copy(one, goal, session())
    manifest = json.loads((tmp_path / "goal" / "blobs" / "sha256" / done.digest[7:]).read_bytes())
    blob = tmp_path / "goal" / "blobs" / "sha256" / manifest["layers"][0]["digest"][7:]
    os.truncate(blob, 10)
    copy(one, goal, session())
    assert blob.stat().st_size == manifest["layers"][0]["size"]
