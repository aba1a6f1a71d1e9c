"""Layers on top of each other: OCI image-spec, layer.md."""

from pathlib import Path

import pytest

from modelpack.spec.errors import HostilePath
from tests.support.archives import Layers, archive, directory, file, hardlink, link

MODEL_TAR = "application/vnd.cncf.model.weight.v1.tar"


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    lower = archive(file("a", b"1"), file("d/b", b"2"), file("d/e/c", b"3"), link("l", "a"))
    return Layers(tmp_path).add(lower)


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        ([file(".wh.a")], {"d/b", "d/e/c", "l"}),
        ([file("d/.wh.b")], {"a", "d/e/c", "l"}),
        ([file(".wh.d")], {"a", "l"}),
        ([file(".wh.l")], {"a", "d/b", "d/e/c"}),
        ([file("d/.wh..wh..opq")], {"a", "l"}),
        ([file(".wh..wh..opq")], set()),
        ([file(".wh.missing"), file("x/.wh.y"), file("a/.wh.z")], {"a", "d/b", "d/e/c", "l"}),
        ([file(".wh..wh.plnk"), file(".wh..wh.aufs", b"x")], {"a", "d/b", "d/e/c", "l"}),
        ([file("d/new"), file("d/.wh..wh..opq")], {"a", "l", "d/new"}),
        ([file("d/b", b"new"), file("d/.wh.b")], {"a", "l", "d/b", "d/e/c"}),
        ([file(".wh.d"), file("d/new")], {"a", "l", "d/new"}),
        ([directory("a/"), file("a/x")], {"a/x", "d/b", "d/e/c", "l"}),
        ([file("d", b"file")], {"a", "d", "l"}),
        ([link("d", "a")], {"a", "d", "l"}),
        ([directory("d/")], {"a", "d/b", "d/e/c", "l"}),
        ([hardlink("x", "d/b"), file(".wh.d")], {"a", "x", "l"}),
    ],
)
def test_an_upper_layer_changes_what_is_below(layers, upper, left):
    """Whiteouts, opaque directories and replacements leave exactly these paths."""
    assert set(layers.add(archive(*upper)).contents()) == left


def test_space_of_hidden_files_is_freed(layers):
    """Nothing that is not part of the result stays on disk."""
    layers.add(archive(file(".wh..wh..opq"), file("new", b"x")))
    assert [path.read_bytes() for path in layers.staged.iterdir()] == [b"x"]


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..."])
def test_whiteouts_of_no_name(layers, name):
    """A whiteout that would hide `.` or `..` is hostile."""
    with pytest.raises(HostilePath, match="whiteout"):
        layers.add(archive(file(name)))


def test_only_images_have_whiteouts(tmp_path):
    """In a ModelPack archive such a name is a name."""
    blob = archive(file("a"), file(".wh.a", b"x"))
    assert Layers(tmp_path).add(blob, MODEL_TAR).contents() == {"a": b"", ".wh.a": b"x"}


def test_a_directory_that_became_a_link_takes_no_files(layers):
    """A later layer replaces a directory by a link; files through it are hostile."""
    layers.add(archive(link("d", "l")))
    with pytest.raises(
        HostilePath, match=r"layer sha256:abc: path 'd/b' passes through 'd', a link"
    ):
        layers.add(archive(file("d/b", b"x")))


def test_a_link_that_became_a_directory_takes_files(layers):
    """A directory entry replaces a link of an earlier layer, so that nothing goes through it."""
    layers.add(archive(directory("l"), file("l/x", b"new")))
    assert layers.contents() == {"a": b"1", "d/b": b"2", "d/e/c": b"3", "l/x": b"new"}
