import os
import socket
from pathlib import Path

import pytest

from modelpack.pack.walk import Directory
from modelpack.spec.errors import BadSource


def paths(source, **options):
    return [file.path for file in Directory(source, **options).files()]


@pytest.fixture
def model(tmp_path):
    root = tmp_path / "model"
    root.mkdir()
    for name in ("b.bin", "a.txt", "sub/Ünï cøde.json", "sub/z"):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return root


def test_files_are_sorted_by_bytes(model):
    """The order is that of the UTF-8 bytes, whatever the locale."""
    assert paths(model) == ["a.txt", "b.bin", "sub/z", "sub/Ünï cøde.json"]


def test_a_single_file_is_a_model_too(model):
    """A file is packed under its own name."""
    assert paths(model / "b.bin") == ["b.bin"]


def test_include_exclude_and_ignore(model):
    """Patterns are those of gitignore, from options and from .modelpackignore."""
    assert paths(model, include=["*.json", "a.*"]) == ["a.txt", "sub/Ünï cøde.json"]
    assert paths(model, exclude=["sub/"]) == ["a.txt", "b.bin"]
    (model / ".modelpackignore").write_text("# comment\n*.bin\n!keep.bin\n")
    (model / "keep.bin").write_text("")
    assert paths(model) == ["a.txt", "keep.bin", "sub/z", "sub/Ünï cøde.json"]


def test_traces_of_tools_are_left_out(model):
    """Version control, our own directory and the Hugging Face client's bookkeeping are not packed."""
    for name in (".git/HEAD", ".modelpack/index", ".cache/huggingface/x", "sub/.DS_Store"):
        path = model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert paths(model) == ["a.txt", "b.bin", "sub/z", "sub/Ünï cøde.json"]


def test_links_inside_are_followed(model):
    """A link to a file or directory of the model is that file or directory."""
    (model / "link").symlink_to("a.txt")
    (model / "linked").symlink_to("sub")
    found = paths(model)
    assert "link" in found
    assert "linked/z" in found


def hugging_face(tmp_path):
    cache = tmp_path / "models--org--m"
    snapshot = cache / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "f00").write_text("weights")
    (snapshot / "model.bin").symlink_to("../../blobs/f00")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc123")
    return cache, snapshot


def test_the_hugging_face_cache_can_be_packed(tmp_path):
    """A snapshot's links into the blobs beside it are followed; the repository means refs/main."""
    cache, snapshot = hugging_face(tmp_path)
    assert paths(snapshot) == ["model.bin"]
    assert paths(cache) == ["model.bin"]
    (file,) = Directory(cache).files()
    assert file.location == str(cache / "blobs" / "f00")


def test_a_cache_with_several_snapshots_asks_which(tmp_path):
    """Without refs/main nothing is guessed."""
    cache, snapshot = hugging_face(tmp_path)
    (cache / "refs" / "main").unlink()
    (snapshot.parent / "def456").mkdir()
    with pytest.raises(BadSource, match="2 snapshots") as caught:
        Directory(cache)
    assert "snapshots/REVISION" in caught.value.hint


def leaving_link(root):
    (root / "bad").symlink_to("/etc/passwd")


def leaving_directory(root):
    (root / "bad").symlink_to("..")


def dangling(root):
    (root / "bad").symlink_to("nowhere")


def loop(root):
    (root / "bad").symlink_to("bad")


def cycle(root):
    (root / "sub" / "bad").symlink_to("../sub")


def fifo(root):
    os.mkfifo(root / "bad")


def unix_socket(root):
    here = Path.cwd()
    os.chdir(root)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("bad")
    finally:
        os.chdir(here)


def device(root):
    os.mknod(root / "bad", 0o600 | 0o020000, os.makedev(1, 3))


def not_utf8(root):
    (root / os.fsdecode(b"bad\xff")).write_text("x")


def too_deep(root):
    deep = root / "bad"
    for _ in range(70):
        deep /= "d"
    deep.mkdir(parents=True)
    (deep / "x").write_text("x")


@pytest.mark.parametrize(
    "spoil",
    [
        leaving_link,
        leaving_directory,
        dangling,
        loop,
        cycle,
        fifo,
        unix_socket,
        device,
        not_utf8,
        too_deep,
    ],
)
def test_what_cannot_be_packed_is_named(model, spoil):
    """One line names the path; excluding it is a way out."""
    spoil(model)
    with pytest.raises(BadSource, match="bad"):
        paths(model)
    assert paths(model, exclude=["bad*"]) == ["a.txt", "b.bin", "sub/z", "sub/Ünï cøde.json"]


def test_unreadable_files_are_named(model):
    """A file that may not be read is refused before anything is published."""
    (model / "b.bin").chmod(0)
    pid = os.fork()
    if pid == 0:  # root may read everything, so somebody else has to try
        code = 1
        try:
            for parent in (model, *model.parents):
                if parent != Path("/") and parent.stat().st_uid == 0 and parent != Path("/tmp"):
                    parent.chmod(0o755)
            os.setuid(65534)
            paths(model)
        except BadSource as error:
            code = 0 if "b.bin: permission" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_nothing_to_pack_is_an_error(tmp_path):
    """An empty directory, a missing one, or patterns that leave nothing are said."""
    with pytest.raises(BadSource, match="no files"):
        Directory(tmp_path).files()
    with pytest.raises(BadSource, match="No such file"):
        Directory(tmp_path / "missing")


def test_a_file_that_changes_is_not_packed(model):
    """Between listing and reading, a change of the file is noticed."""
    source = Directory(model)
    file = source.files()[0]
    Path(file.location).write_text("other")
    with pytest.raises(BadSource, match="changed"), source.stream(file, 0):
        pass
    with pytest.raises(BadSource, match="changed"):
        source.check(file)
