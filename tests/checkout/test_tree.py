"""The tree of an artifact that exists only in memory."""

import errno
from pathlib import Path

import pytest

from modelpack.checkout import tree as tree_module
from modelpack.checkout.tree import StagedFile, StagedLink, StagedTree
from modelpack.spec import limits
from modelpack.spec.errors import DiskError, HostilePath, LimitExceeded


@pytest.fixture
def tree(tmp_path: Path) -> StagedTree:
    directory = tmp_path / "staged"
    directory.mkdir()
    return StagedTree(directory)


def put(tree: StagedTree, path: str, data: bytes = b"x") -> None:
    with tree.create(path, len(data)) as file:
        file.write(data)


def files(tree: StagedTree) -> set[str]:
    return set(tree.checked())


def test_files_are_numbered_and_private(tree):
    """Whatever a file is called, its bytes are in a numbered file that only its owner can read."""
    put(tree, "a/very/deep/name.safetensors", b"data")
    (entry,) = tree.checked().values()
    assert isinstance(entry, StagedFile)
    assert entry.file == tree.directory / "1"
    assert entry.file.stat().st_mode & 0o777 == 0o600
    assert (entry.size, entry.file.read_bytes()) == (4, b"data")


def test_later_files_replace_earlier_ones_and_free_their_space(tree):
    """The last file of a path counts, and the bytes of the others are gone at once."""
    put(tree, "a", b"one")
    put(tree, "a", b"two")
    assert [entry.file.read_bytes() for entry in tree.checked().values()] == [b"two"]
    assert len(list(tree.directory.iterdir())) == 1


def test_a_file_replaces_a_directory(tree):
    """A file where a directory was removes everything below it."""
    put(tree, "d/a")
    put(tree, "d/e/b")
    put(tree, "d", b"file")
    assert files(tree) == {"d"}
    assert len(list(tree.directory.iterdir())) == 1


def test_a_directory_replaces_a_link(tree):
    """After an explicit directory entry, files below it are where they say."""
    tree.link("d", "elsewhere")
    tree.make_directory("d")
    put(tree, "d/a")
    assert files(tree) == {"d/a"}


@pytest.mark.parametrize("add", [put, lambda tree, path: tree.link(path, "x"), StagedTree.hide])
@pytest.mark.parametrize("first", ["link", "file"])
def test_nothing_passes_through_a_link_or_file(tree, first, add):
    """A path below a link or file is refused, or names nothing."""
    if first == "link":
        tree.link("d", "elsewhere")
    else:
        put(tree, "d")
    if add is StagedTree.hide:
        add(tree, "d/a")
    else:
        with pytest.raises(HostilePath, match=f"passes through 'd', a {first}"):
            add(tree, "d/a")
    assert files(tree) == {"d"}


@pytest.mark.parametrize(
    ("path", "target", "stored"),
    [
        ("link", "file", "file"),
        ("a/b/link", "../../blobs/x", "../../blobs/x"),
        ("a/b/link", "/blobs/x", "../../blobs/x"),
        ("a/link", "./x//y/", "x/y"),
        ("a/link", "x/../y", "y"),
        ("a/link", "..", ".."),
        ("link", ".", "."),
        ("snapshots/rev/model", "../../blobs/" + "a" * 64, "../../blobs/" + "a" * 64),
    ],
)
def test_links_inside_are_stored_in_normal_form(tree, path, target, stored):
    """Targets inside the artifact are relative and have `..` only at their start."""
    tree.link(path, target)
    (entry,) = tree.checked().values()
    assert isinstance(entry, StagedLink)
    assert entry.target == stored


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("link", ".."),
        ("link", "../x"),
        ("a/link", "../../etc/passwd"),
        ("a/link", "x/../../../y"),
        ("a/link", "/../etc/passwd"),
        ("a/link", ""),
        ("a/link", "x\0y"),
        ("a/link", "x" * 5000),
    ],
)
def test_links_to_the_outside_are_refused(tree, path, target):
    """A target that leaves the artifact, or is no path, is hostile."""
    with pytest.raises(HostilePath):
        tree.link(path, target)
    assert not files(tree)


def test_links_through_links_stay_inside(tree, tmp_path):
    """`z/../..` means its parent here, where the file system would go up through the link z."""
    tree.link("x/y/z", "../..")
    tree.link("x/y/out", "z/../../x")
    entries = tree.checked()
    root = tmp_path / "a" / "b" / "placed"
    for path, entry in entries.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(entry.target)
    assert all((root / path).resolve().is_relative_to(root) for path in entries)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "../a", "a/../b", "a//b", "a/", ".", "a\0b", "\udc80", "a/" * 70 + "a", "n" * 256],
)
def test_bad_paths_are_refused(tree, path):
    """Every way to add an entry checks its path."""
    put(tree, "ok")
    for add in (
        lambda: tree.create(path, 0),
        lambda: tree.link(path, "x"),
        lambda: tree.hardlink(path, "ok"),
        lambda: tree.adopt(path, tree.directory / "1"),
    ):
        with pytest.raises(HostilePath):
            add()
    assert files(tree) == {"ok"}


def test_our_own_directory_is_refused(tree):
    """An artifact cannot write where modelpack keeps its own files."""
    with pytest.raises(HostilePath, match="modelpack keeps"):
        tree.create(".modelpack/lock", 0)


def test_hard_links_share_bytes_but_not_names(tree):
    """A hard link costs no space and survives the replacement of what it was made from."""
    put(tree, "a", b"data")
    tree.hardlink("b", "a")
    tree.hardlink("b", "b")
    first, second = (entry.file for entry in tree.checked().values())
    assert first != second
    assert first.samefile(second)
    put(tree, "a", b"new")
    assert {p: e.file.read_bytes() for p, e in tree.checked().items()} == {
        "a": b"new",
        "b": b"data",
    }


def test_hard_links_become_copies_where_there_are_none(tree, monkeypatch):
    """On a file system without hard links the bytes are copied."""

    def refuse(*_):
        raise OSError(errno.EPERM, "no")

    put(tree, "a", b"data")
    monkeypatch.setattr(tree_module.os, "link", refuse)
    tree.hardlink("b", "a")
    assert {entry.file.read_bytes() for entry in tree.checked().values()} == {b"data"}
    assert len(list(tree.directory.iterdir())) == 2


@pytest.mark.parametrize("target", ["missing", "link", "d", "../etc/passwd", "/etc/passwd", ""])
def test_hard_links_only_to_regular_files_of_the_artifact(tree, target):
    """A hard link to a link, a directory or anything outside is hostile."""
    put(tree, "d/file")
    tree.link("link", "d/file")
    with pytest.raises(HostilePath, match="no regular file of this artifact"):
        tree.hardlink("b", target)


def test_adopted_files_stay_where_they_are(tree, tmp_path):
    """A raw layer is part of the tree without being moved, and is not deleted when replaced."""
    spool = tmp_path / "spool"
    spool.write_bytes(b"weights")
    tree.adopt("model", spool)
    assert tree.checked()["model"] == StagedFile(spool, 7, 0)
    tree.remove("model")
    assert not files(tree)
    assert spool.exists()


def test_remove_takes_files_and_directories(tree):
    """Removing what is there works on both; removing nothing is no error."""
    for path in ("a", "d/b", "d/c", "e/f"):
        put(tree, path)
    for path in ("a", "d", "missing", "e/f/g"):
        tree.remove(path)
    assert files(tree) == {"e/f"}


def test_hiding_spares_the_current_layer(tree):
    """Whiteouts remove files of earlier layers only, whatever the order in the archive."""
    put(tree, "d/old")
    put(tree, "d/e/old")
    tree.begin_layer()
    put(tree, "d/new")
    tree.hide("d")
    tree.hide("d")
    put(tree, "d/newer")
    assert files(tree) == {"d/new", "d/newer"}
    tree.begin_layer()
    tree.hide_below("d")
    tree.hide_below("missing")
    assert not files(tree)


def test_each_layer_hides_anew(tree):
    """A path that one layer hid and refilled can be hidden by the next."""
    for hide in (tree.hide, tree.hide_below) * 2:
        put(tree, "d/a")
        tree.begin_layer()
        hide("d")
        assert not files(tree)


def test_the_root_can_be_hidden(tree):
    """An opaque whiteout at the root removes everything from earlier layers."""
    put(tree, "a")
    put(tree, "b/c")
    tree.begin_layer()
    tree.hide_below("")
    tree.make_directory("")
    assert not files(tree)


def test_entries_are_limited_even_if_they_replace_each_other(tree, monkeypatch):
    """An endless archive of one path ends at the limit."""
    monkeypatch.setattr(limits, "FILES", 10)
    for _ in range(10):
        put(tree, "a")
    for add in (lambda: put(tree, "a"), lambda: tree.hide("a"), lambda: tree.make_directory("d")):
        with pytest.raises(LimitExceeded, match="more than 10 entries"):
            add()


def test_directories_are_limited(tree, monkeypatch):
    """Few files with many directories cannot fill memory."""
    monkeypatch.setattr(limits, "FILES", 10)
    put(tree, "/".join("abcdefghij") + "/file")
    with pytest.raises(LimitExceeded, match="more than 10 directories"):
        put(tree, "k/file")


def test_a_full_disk_is_met_before_writing(tree):
    """A file that cannot fit is refused with the shortfall, and nothing is created."""
    with pytest.raises(DiskError, match="too few"):
        tree.create("a", 1 << 60)
    assert not list(tree.directory.iterdir())
