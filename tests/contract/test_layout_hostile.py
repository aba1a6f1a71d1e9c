"""Layouts from strangers, and disks that say no: a clear error, and never a wait."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from modelpack.oci.layout import LayoutRepository
from modelpack.spec import media
from modelpack.spec.errors import (
    DiskError,
    LimitExceeded,
    ModelpackError,
    NotFound,
    ProtocolViolation,
    Rejected,
)
from modelpack.spec.manifest import Descriptor, describe
from modelpack.spec.progress import QUIET
from tests.contract.contents import Watched, blob_of, image, put, put_image, read
from tests.support.servers import ROOT


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "layout"


@pytest.fixture
def layout(directory):
    repository = LayoutRepository(directory)
    yield repository
    repository.close()


@pytest.fixture
def stored(layout):
    """A manifest with one layer, tagged v1."""
    return put_image(layout, b"layer", tag="v1")


def path_of(directory: Path, digest: str) -> Path:
    return directory / "blobs" / digest.replace(":", "/")


LAYER = blob_of(b"layer", media.LAYER_TAR)


def swap(path: Path, kind: str, elsewhere: Path) -> None:
    """Put something else in place of a file."""
    path.rename(elsewhere)
    match kind:
        case "symlink":
            path.symlink_to(elsewhere)
        case "dangling symlink":
            path.symlink_to("nowhere")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "directory", "fifo"])
def test_what_is_no_file_is_no_blob(layout, directory, stored, tmp_path, kind):
    """Links, directories and pipes in place of blobs are named and never followed or waited for."""
    swap(path_of(directory, LAYER.digest), kind, tmp_path / "aside-layer")
    swap(path_of(directory, stored.digest), kind, tmp_path / "aside-manifest")
    for use in (
        lambda: layout.open(LAYER, 0, 5),
        lambda: layout.stat_blob(LAYER.digest),
        lambda: put(layout, b"layer"),
        lambda: layout.manifest("v1"),
        lambda: layout.manifest(stored.digest),
    ):
        with pytest.raises(ProtocolViolation, match="is not a regular file") as caught:
            use()
        assert caught.value.permanent


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256"])
def test_directories_that_are_links(layout, directory, stored, tmp_path, part):
    """A linked blobs directory is refused for reading and for writing."""
    swap(directory / part, "symlink", tmp_path / "aside")
    for use in (
        lambda: layout.open(LAYER, 0, 5),
        lambda: layout.manifest("v1"),
        lambda: put(layout, b"another"),
    ):
        with pytest.raises(ProtocolViolation, match="is a symbolic link"):
            use()


@pytest.mark.parametrize("part", [".modelpack", ".modelpack/uploads"])
def test_our_own_directory_may_be_hostile(layout, directory, stored, tmp_path, part):
    """Nothing is written through links in place of our private directories."""
    layout.close()
    (tmp_path / "victim").mkdir()
    swap(directory / part, "symlink", tmp_path / "aside")
    (directory / part).unlink()
    (directory / part).symlink_to(tmp_path / "victim")
    with pytest.raises(ProtocolViolation, match="is not a directory"):
        put(LayoutRepository(directory), b"another")
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "not the index"),
        (b"not json", "not the index"),
        (b"[]", "not the index"),
        (b"{}", "not the index"),
        (b'{"schemaVersion":2}', "not the index"),
        (b'{"schemaVersion":1,"manifests":[]}', "schemaVersion"),
        (b'{"schemaVersion":2,"manifests":{}}', "not the index"),
        (b'{"schemaVersion":2,"manifests":["x"]}', "not the index"),
        (b'{"schemaVersion":2,"manifests":[{"digest":"x"}]}', "not the index"),
        (b'{"schemaVersion":2,"manifests":[{"mediaType":1,"digest":"x","size":1}]}', "not the"),
        (b'{"a":' + b"[" * 100_000 + b"}", "not the index"),
        (b"\xff\xfe", "not the index"),
    ],
)
def test_an_index_that_is_none(layout, directory, stored, document, message):
    """An index.json of any other form is refused for good, and left as it is."""
    (directory / "index.json").write_bytes(document)
    for use in (layout.tags, lambda: layout.manifest("v1"), lambda: put_image(layout, tag="v2")):
        with pytest.raises(ProtocolViolation, match=message) as caught:
            use()
        assert caught.value.permanent
    assert (directory / "index.json").read_bytes() == document


@pytest.mark.parametrize("file", ["index.json", "oci-layout"])
def test_a_file_of_a_gigabyte(layout, directory, stored, file):
    """A huge index.json or oci-layout is not read."""
    os.truncate(directory / file, 1 << 30)
    with pytest.raises(LimitExceeded, match="1073741824 bytes"):
        layout.tags()


def test_a_huge_manifest(layout, directory, stored):
    """A manifest of a gigabyte is not read."""
    os.truncate(path_of(directory, stored.digest), 1 << 30)
    with pytest.raises(LimitExceeded, match="expected at most"):
        layout.manifest("v1")


@pytest.mark.parametrize(
    "marker",
    [b"", b"1.0.0", b'{"imageLayoutVersion":"2.0.0"}', b'{"imageLayoutVersion":1}', b"{}", b"[]"],
)
def test_a_layout_of_another_version(layout, directory, stored, marker):
    """An oci-layout file that does not say 1.0.0 is refused, for reading and writing."""
    (directory / "oci-layout").write_bytes(marker)
    for use in (layout.tags, lambda: put_image(layout, tag="v2")):
        with pytest.raises(ProtocolViolation, match="oci-layout"):
            use()


def test_a_layout_without_an_index(layout, directory, stored):
    """A missing index.json is damage, not an empty layout."""
    (directory / "index.json").unlink()
    with pytest.raises(ProtocolViolation, match="is missing"):
        layout.tags()


def test_a_layout_without_its_marker(layout, directory, stored):
    """Without the oci-layout file nothing is read; a put makes it whole and keeps what is there."""
    (directory / "oci-layout").unlink()
    with pytest.raises(NotFound, match="no oci-layout file"):
        layout.tags()
    put_image(layout, tag="v2")
    assert layout.tags() == ["v1", "v2"]
    assert layout.manifest("v1")[0] == stored


@pytest.mark.parametrize("size", [0, 4, 6])
def test_a_blob_of_another_size(layout, directory, stored, size):
    """A blob file that is shorter or longer than its descriptor is refused before it is read."""
    os.truncate(path_of(directory, LAYER.digest), size)
    with pytest.raises(ProtocolViolation, match=f"{size} bytes; expected 5") as caught:
        layout.open(LAYER, 0, 5)
    assert caught.value.permanent


def test_a_truncated_blob_is_repaired_by_a_put(layout, directory, stored):
    """Putting a blob whose file is too short replaces the file."""
    os.truncate(path_of(directory, LAYER.digest), 2)
    with pytest.raises(ProtocolViolation, match="2 bytes; expected 5"):
        layout.put_manifest(image([LAYER]), media.OCI_MANIFEST, "v2")
    put(layout, b"layer")
    assert read(layout, LAYER) == b"layer"


def test_a_blob_that_shrinks_while_it_is_read(layout, directory, stored):
    """A file that ends early under a reader is an error, not an end."""
    with layout.open(LAYER, 0, 5) as stream:
        assert bytes(stream.read(2)) == b"la"
        os.truncate(path_of(directory, LAYER.digest), 2)
        with pytest.raises(ProtocolViolation, match="ended 3 bytes early"):
            stream.read(5)


def test_a_manifest_with_other_bytes(layout, directory, stored):
    """A manifest whose bytes do not have its digest is refused."""
    path = path_of(directory, stored.digest)
    path.write_bytes(path.read_bytes().replace(b"2", b"3"))
    for target in ("v1", stored.digest):
        with pytest.raises(ProtocolViolation, match="with another digest"):
            layout.manifest(target)


def test_a_listed_manifest_that_is_not_there(layout, directory, stored):
    """A layout may lack blobs: what is listed and not there is NotFound."""
    path_of(directory, stored.digest).unlink()
    with pytest.raises(NotFound, match="does not hold it"):
        layout.manifest("v1")


@pytest.mark.parametrize(
    "digest", ["sha256:../../../etc/passwd", "sha256:" + "A" * 64, "blake3:" + "0" * 64, "sha256:"]
)
def test_digests_are_checked_before_they_are_paths(layout, directory, stored, digest):
    """A digest from outside never becomes a path unchecked."""
    listed = {"mediaType": media.OCI_MANIFEST, "digest": digest, "size": 2}
    path = directory / "index.json"
    index = json.loads(path.read_text())
    index["manifests"].append({**listed, "annotations": {"org.opencontainers.image.ref.name": "x"}})
    path.write_text(json.dumps(index))
    blob = Descriptor(media.OCTETS, digest, 2)
    content = Watched(b"{}")
    content.blob = blob
    for use in (
        lambda: layout.manifest("x"),
        lambda: layout.manifest(digest),
        lambda: layout.stat_blob(digest),
        lambda: layout.open(blob, 0, 1),
        lambda: layout.put_blob(content, QUIET),
    ):
        with pytest.raises(Rejected):
            use()
    assert layout.manifest("v1")[0] == stored
    assert layout.referrers(stored.digest) == []


def test_damaged_manifests_hide_no_referrers(layout, directory, stored):
    """One damaged manifest does not keep the referrers of others from being found."""
    damaged = put_image(layout, b"x", tag="v2")
    signature = put_image(layout, subject=stored, artifact_type="example/signature")
    path_of(directory, damaged.digest).write_bytes(b"[[[[")
    assert [entry.digest for entry in layout.referrers(stored.digest)] == [signature.digest]


def test_an_archive_is_no_layout(tmp_path):
    """A tar file in place of the directory is refused with the way out."""
    (tmp_path / "model.tar").write_bytes(bytes(10240))
    layout = LayoutRepository(tmp_path / "model.tar")
    with pytest.raises(Rejected, match="is a file") as caught:
        layout.tags()
    assert "tar -xf" in caught.value.hint
    with pytest.raises(DiskError):
        put(layout, b"layer")


def test_somebody_elses_directory_is_not_littered(tmp_path):
    """A put into a directory that holds other things is refused, and writes nothing."""
    (tmp_path / "config.json").write_text("{}")
    layout = LayoutRepository(tmp_path)
    with pytest.raises(Rejected, match="'config"):
        put(layout, b"layer")
    with pytest.raises(NotFound, match="no OCI layout"):
        layout.tags()
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_reading_leaves_no_trace(layout, directory, stored):
    """Reading a layout that another tool made creates nothing in it."""
    layout.close()
    for path in sorted((directory / ".modelpack").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (directory / ".modelpack").rmdir()
    reader = LayoutRepository(directory)
    reader.tags()
    reader.manifest("v1")
    reader.referrers(stored.digest)
    assert reader.stat_blob(LAYER.digest) == 5
    assert read(reader, LAYER) == b"layer"
    assert not (directory / ".modelpack").exists()
    reader.close()


READ_ONLY = """
import os, sys
from pathlib import Path
from modelpack.oci.layout import LayoutRepository
from modelpack.spec.errors import DiskError
from tests.contract.contents import blob_of, put, put_image, read
if os.getuid() == 0 and sys.argv[2] == "Permission denied":  # which root is never told
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
layout = LayoutRepository(Path(sys.argv[1]))
assert layout.tags() == ["v1"]
stored, _ = layout.manifest("v1")
assert layout.stat_blob(blob_of(b"layer").digest) == 5
assert read(layout, blob_of(b"layer")) == b"layer"
assert layout.referrers(stored.digest) == []
for use in (lambda: put(layout, b"more"), lambda: put_image(layout), lambda: put(
        LayoutRepository(Path(sys.argv[1]) / "below"), b""), lambda: layout.delete_manifest("v1")):
    try:
        use()
    except DiskError as error:
        assert sys.argv[2] in str(error) and sys.argv[1] in str(error) and error.hint, error
    else:
        raise AssertionError("it was written")
"""


def succeed(*command) -> None:
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def need_mounts() -> None:
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")


def test_a_directory_that_may_only_be_read():
    """Without permission to write everything is read, and writing names path and next step."""
    with tempfile.TemporaryDirectory() as base:  # pytest's own is closed to other users
        Path(base).chmod(0o755)
        layout = LayoutRepository(Path(base) / "layout")
        put_image(layout, b"layer", tag="v1")
        layout.close()
        for path in (layout._root, layout._root / ".modelpack", layout._root / "blobs"):
            path.chmod(0o555)
        succeed(sys.executable, "-c", READ_ONLY, layout._root, "Permission denied")
        for path in (layout._root, layout._root / ".modelpack", layout._root / "blobs"):
            path.chmod(0o755)


def test_a_file_system_that_may_only_be_read(layout, directory, stored):
    """The same where the file system is mounted read-only."""
    layout.close()
    script = (
        'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1" "$4"'
    )
    command = ["unshare", "-m", "sh", "-c", script, "sh", directory, sys.executable, READ_ONLY]
    need_mounts()
    succeed(*command, "Read-only file system")


FULL_DISK = """
import sys
from pathlib import Path
from modelpack.oci import layout_upload
from modelpack.oci.layout import LayoutRepository
from modelpack.spec.errors import DiskError
from tests.contract.contents import *
layout_upload.require_space = lambda *_: None  # somebody else fills the disk meanwhile
layout = LayoutRepository(Path("/mnt/layout"))
put_image(layout, b"x" * MIB, tag="v1")
large = Watched(bytes(20 * MIB))
for _ in range(2):
    try:
        layout.put_blob(large, QUIET)
    except DiskError as error:
        assert "No space left" in str(error) and "free some space" in error.hint, error
    else:
        raise AssertionError("it fitted")
assert large.offsets[0] == 0 and large.offsets[1] > MIB
assert layout.stat_blob(large.blob.digest) is None
assert layout.tags() == ["v1"] and read(layout, blob_of(b"x" * MIB)) == b"x" * MIB
layout.close()
"""


def test_a_disk_that_fills_up():
    """A full disk is a DiskError with the next step; what was there stays, the rest continues."""
    script = 'mount -t tmpfs -o size=8m none /mnt && exec "$1" -c "$2"'
    need_mounts()
    succeed("unshare", "-m", "sh", "-c", script, "sh", sys.executable, FULL_DISK)


def test_a_file_size_limit(layout):
    """`ulimit -f` is met with a DiskError that names it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    content = Watched(bytes(3 << 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, before[1]))
    try:
        with pytest.raises(DiskError, match="File too large") as caught:
            layout.put_blob(content, QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in caught.value.hint
    layout.put_blob(content, QUIET)
    assert content.offsets == [0, 2 << 20]


def test_a_blob_that_cannot_fit(layout, stored):
    """A blob larger than the free space is refused before a byte of it is read."""
    content = Watched(b"x")
    content.blob = Descriptor(media.OCTETS, describe("", b"x").digest, 1 << 60)
    with pytest.raises(DiskError, match="too few"):
        layout.put_blob(content, QUIET)
    assert content.offsets == []


def test_errors_are_one_line_with_a_next_step(layout):
    """What a person meets first says what, where, and what to do."""
    with pytest.raises(ModelpackError) as caught:
        layout.manifest("v1")
    assert "\n" not in str(caught.value)
    assert str(layout.name) in str(caught.value)
    assert caught.value.hint
