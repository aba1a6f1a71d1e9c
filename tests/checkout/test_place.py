import os

import pytest

from modelpack.checkout.place import Staged, Target
from modelpack.spec.errors import TargetConflict
from modelpack.state.database import Database
from modelpack.state.placed import Placed


@pytest.fixture
def target(tmp_path):
    database = Database(tmp_path / "db")
    made = []

    def make(*, overwrite=False):
        made.append(None)
        directory = tmp_path / "model"
        return Target(directory, Placed(database, directory), overwrite=overwrite)

    yield make
    database.close()


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "staged").mkdir()

    def make(files):
        staged = {}
        for number, (path, data) in enumerate(files.items()):
            file = tmp_path / "staged" / f"{number}-{os.urandom(4).hex()}"
            file.write_bytes(data)
            staged[path] = Staged(file)
        return staged

    return make


def test_files_appear_under_their_names(target, stage, tmp_path):
    """Staged files are renamed into directories made for them, with the mode the user's umask asks."""
    target().place(stage({"a": b"1", "deep/er/b": b"2"}), "m")
    assert (tmp_path / "model/a").read_bytes() == b"1"
    assert (tmp_path / "model/deep/er/b").read_bytes() == b"2"
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "model/a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_files_of_an_earlier_pull_are_replaced_and_removed(target, stage, tmp_path):
    """What a pull placed, and nobody edited, is the model's."""
    target().place(stage({"a": b"1", "old/b": b"2"}), "m1")
    after = target()
    after.place(stage({"a": b"3"}), "m2")
    assert after.remove_stale(["a"]) == ["old/b"]
    assert sorted(p.name for p in (tmp_path / "model").rglob("*")) == ["a"]
    assert (tmp_path / "model/a").read_bytes() == b"3"


def test_edited_files_are_not_replaced(target, stage, tmp_path):
    """A file that was edited since is the user's, until --overwrite."""
    target().place(stage({"a": b"1"}), "m1")
    (tmp_path / "model/a").write_bytes(b"edited")
    with pytest.raises(TargetConflict, match="a is not from an earlier pull") as caught:
        target().place(stage({"a": b"2"}), "m2")
    assert "--overwrite" in caught.value.hint
    assert (tmp_path / "model/a").read_bytes() == b"edited"
    target(overwrite=True).place(stage({"a": b"2"}), "m2")
    assert (tmp_path / "model/a").read_bytes() == b"2"


def test_edited_files_are_not_removed(target, stage, tmp_path):
    """An edited file that is not in the new version stays."""
    target().place(stage({"a": b"1", "b": b"2"}), "m1")
    (tmp_path / "model/b").write_bytes(b"edited")
    assert target().remove_stale(["a"]) == []
    assert (tmp_path / "model/b").read_bytes() == b"edited"


@pytest.mark.parametrize("prepare", ["file", "link", "directory"])
def test_nothing_is_placed_when_one_file_is_in_the_way(target, stage, tmp_path, prepare):
    """A conflict with one file leaves all of them untouched."""
    (tmp_path / "model").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    way = tmp_path / "model" / "sub"
    if prepare == "file":
        way.write_text("mine")
    elif prepare == "link":
        way.symlink_to(outside)
    else:
        (way / "x").mkdir(parents=True)
    with pytest.raises(TargetConflict, match="sub"):
        target().place(stage({"a": b"1", "sub/x": b"2"}), "m")
    assert not (tmp_path / "model/a").exists()
    assert list(outside.iterdir()) == []


def test_a_link_of_the_user_is_replaced_not_followed(target, stage, tmp_path):
    """--overwrite replaces a link itself; what it led to stays."""
    (tmp_path / "model").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "model/a").symlink_to(tmp_path / "precious")
    target(overwrite=True).place(stage({"a": b"1"}), "m")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "model/a").read_bytes() == b"1"
    assert not (tmp_path / "model/a").is_symlink()


def test_links_are_placed(target, tmp_path):
    """A link of the artifact replaces what an earlier pull had there."""
    (tmp_path / "model").mkdir()
    target().place({"l": Staged(None, "a")}, "m")
    target().place({"l": Staged(None, "b")}, "m2")
    assert os.readlink(tmp_path / "model/l") == "b"
