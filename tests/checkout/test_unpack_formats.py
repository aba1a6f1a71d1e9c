"""Archives that honest tools write."""

import io
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import oras.utils
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpack.checkout import feed
from modelpack.spec import limits, tarrule
from modelpack.spec.errors import Unsupported
from modelpack.spec.progress import Counter, Quiet
from tests.support.archives import (
    GZIP,
    TAR,
    ZSTD,
    Layers,
    archive,
    directory,
    extended,
    file,
    gz,
    hardlink,
    header,
    link,
    pad,
    pax,
    record,
    skippable,
    zst,
)  # fmt: skip

SMALL = archive(file("a", b"one"), file("d/b", b"two" * 1000), link("d/c", "b"))
SMALL_FILES = {"a": b"one", "d/b": b"two" * 1000, "d/c": "-> b"}


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


@pytest.mark.parametrize(
    ("media_type", "blob"),
    [
        (TAR, SMALL),
        (GZIP, gz(SMALL)),
        (ZSTD, zst(SMALL)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", gz(SMALL)),
        ("application/vnd.docker.image.rootfs.diff.tar", SMALL),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", gz(SMALL)),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", zst(SMALL)),
        ("application/vnd.cncf.model.weight.v1.tar", SMALL),
        ("application/vnd.cncf.model.weight.config.v1.tar+gzip", gz(SMALL)),
        ("application/vnd.cncf.model.dataset.v1.tar+zstd", zst(SMALL)),
        ("application/vnd.cnai.model.layer.v1.tar", SMALL),
        ("application/vnd.kitops.modelkit.modelpart.v1.tar", SMALL),
        ("application/vnd.kitops.modelkit.model.v1.tar+gzip", gz(SMALL)),
    ],
)
def test_every_media_type_of_an_archive_is_read(layers, media_type, blob):
    """The same files come out whatever the layer's type says about packing."""
    assert layers.add(blob, media_type).contents() == SMALL_FILES


@pytest.mark.parametrize(
    "media_type", ["application/vnd.cncf.model.weight.v1.raw", "application/json", ""]
)
def test_what_is_no_archive_is_refused(layers, media_type):
    """A raw layer or an unknown type is not searched for members."""
    with pytest.raises(Unsupported, match="sha256:abc"):
        layers.add(SMALL, media_type)


HALF = len(SMALL) // 2 + 7


@pytest.mark.parametrize(
    ("media_type", "blob"),
    [
        (GZIP, gz(SMALL[:HALF]) + gz(SMALL[HALF:])),
        (GZIP, gz(b"") + gz(SMALL[:5]) + gz(b"") + bytes(300) + gz(SMALL[5:]) + bytes(700)),
        # eStargz: a member per file, then a table of contents and a footer.
        (GZIP, b"".join(gz(SMALL[at : at + 512]) for at in range(0, len(SMALL), 512)) + gz(b"toc")),
        (ZSTD, zst(SMALL[:HALF]) + zst(SMALL[HALF:])),
        (ZSTD, skippable(64) + zst(SMALL)),
        (ZSTD, zst(SMALL[:HALF]) + skippable(200_000, 3) + skippable(0) + zst(SMALL[HALF:])),
        # zstd:chunked: a frame per chunk, table of contents and footer in skippable frames.
        (ZSTD, b"".join(zst(SMALL[at : at + 999]) for at in range(0, len(SMALL), 999))
            + skippable(5000) + skippable(64)),
    ],
)  # fmt: skip
def test_members_and_frames_may_be_many(layers, media_type, blob):
    """Compressed blobs in several parts, with padding and skippable frames, are one archive."""
    assert layers.add(blob, media_type).contents() == SMALL_FILES


def test_long_windows_of_zstd_are_read(layers, tmp_path):
    """`zstd --long=27` is the widest that is read."""
    (tmp_path / "tar").write_bytes(SMALL)
    packed = subprocess.run(
        ["zstd", "--long=27", "-q", "-c"], input=SMALL, capture_output=True, check=True
    )
    assert layers.add(packed.stdout, ZSTD).contents() == SMALL_FILES


def test_our_own_layers_are_read(layers):
    """The tar rule of this project, PAX headers and all, comes out as it went in."""
    files = [("a" * 120 + "/b" * 40, 3), ("größe/模型", 600), ("x", 0)]
    parts = tarrule.literals(files)
    payloads = [b"x" * size for _, size in files] + [b""]
    blob = b"".join(a + b for a, b in zip(parts, payloads, strict=True))
    assert layers.add(blob).contents() == {path: b"x" * size for path, size in files}


LONG = "/".join(["directory-with-a-long-name"] * 9) + "/größe.safetensors"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_writes_is_read(layers, form):
    """All three formats of Python's tarfile, with its padding of the last record."""
    buffer = io.BytesIO()
    paths = ["./plain", "d//twice", LONG] if form != tarfile.USTAR_FORMAT else ["./plain", "d/x"]
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for path in paths:
            info = tarfile.TarInfo(path)
            info.size, info.mtime, info.mode = 5, 1.5e9 + 0.25, 0o4755
            tar.addfile(info, io.BytesIO(b"12345"))
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/" + paths[-1]
        tar.addfile(info)
    expected = {str(Path(path)): b"12345" for path in paths}
    assert layers.add(buffer.getvalue()).contents() == {**expected, "link": f"-> {paths[-1]}"}


@pytest.mark.parametrize(
    "member",
    [
        file("model", b"data", kind=b"\0", magic=bytes(8)),  # V7
        file("model", b"data", kind=b"7"),
        file("model", b"data", magic=b"ustar  \0"),
        pax(path=b"model") + file("x", b"data"),
        extended(b"model\0", b"L") + file("x", b"data"),
        pax(size=b"4") + header("model", 0) + pad(b"data"),
        header("model", b"\x80" + bytes(10) + b"\x04") + pad(b"data"),
        header("model", b"4") + pad(b"data"),
        header("model", b"         4 ") + pad(b"data"),
        file("./model", b"data"),
        pax(comment=b"x", **{"SCHILY.xattr.user.a": b"\0=\n"}) + file("model", b"data"),
        pax(path=b"") + file("model", b"data"),
        extended(record("comment", b"commit"), b"g") + file("model", b"data"),
        extended(record("path", b"first") + record("path", b"model")) + file("x", b"data"),
        directory("./") + directory("model/") + file("model", b"data"),
        file("other/", b"", kind=b"\0") + file("model", b"data"),
    ],
)
def test_every_way_to_say_the_same(layers, member):
    """V7, USTAR, GNU and PAX spellings of one file of four bytes."""
    assert layers.add(archive(member)).contents() == {"model": b"data"}


def test_checksums_over_signed_characters(layers):
    """Old writers on some machines summed signed bytes; their archives are read."""
    name = "größe"
    unsigned = int(header(name, 1)[148:154], 8)
    high = sum(byte > 127 for byte in name.encode())
    blob = archive(file(name, b"x", checksum=b"%06o\0 " % (unsigned - 256 * high)))
    assert high
    assert layers.add(blob).contents() == {name: b"x"}


def test_prefix_and_name_are_joined(layers):
    """USTAR's prefix is part of the path, and in GNU's format is not."""
    blob = archive(
        file("b", b"1", prefix=b"dir/sub"), file("c", b"2", prefix=b"0123", magic=b"ustar  \0")
    )
    assert layers.add(blob).contents() == {"dir/sub/b": b"1", "c": b"2"}


def test_one_zero_block_at_the_end_is_enough(layers):
    """What Go reads without complaint is read."""
    assert layers.add(SMALL[:-512]).contents() == SMALL_FILES


def test_a_second_archive_after_the_first_is_not_read(layers):
    """An archive ends at its end, as for GNU tar and Go."""
    assert layers.add(SMALL + archive(file("evil", b"x"))).contents() == SMALL_FILES


def test_the_last_of_several_files_of_one_path_counts(layers):
    """Duplicates replace each other, as they do on extraction."""
    blob = archive(file("a", b"1"), file("./a", b"2"), hardlink("b", "a"), file("a", b"3"))
    assert layers.add(blob).contents() == {"a": b"3", "b": b"2"}


def test_a_chunk_index_that_lost_its_annotation_is_left_out(layers):
    """Our own directory is never unpacked."""
    blob = archive(file(".modelpack/index", b"x" * 700), link(".modelpack/l", "/etc"), file("a"))
    assert layers.add(blob).contents() == {"a": b""}


def test_progress_hears_the_bytes_of_the_blob(layers):
    """Whatever is read or left unread, the bar ends at the size of the blob."""
    big = archive(file("a", random.Random(1).randbytes(3_000_000)))
    for blob, media_type in (
        (big + bytes(9000), TAR),
        (gz(big), GZIP),
        (zst(big) + skippable(5000), ZSTD),
    ):
        counter = Counter(Quiet())
        layers.add(blob, media_type, counter)
        assert counter.total == len(blob)


@pytest.mark.parametrize("broken", ["missing", "refused", "zero"])
def test_without_copying_in_the_kernel(layers, monkeypatch, broken):
    """Where copy_file_range cannot do it, reading and writing does."""
    data = random.Random(2).randbytes(2_500_000)

    def copy(*_, **__):
        if broken == "zero":
            return 0
        raise OSError({"missing": 38, "refused": 18}[broken], "no")

    monkeypatch.setattr(feed.os, "copy_file_range", copy)
    assert layers.add(archive(file("a", data), file("b", data))).contents() == {
        "a": data,
        "b": data,
    }


def test_expansion_up_to_the_limit_is_no_bomb(layers, monkeypatch):
    """An archive that is exactly as large as allowed is read."""
    blob = gz(SMALL)
    monkeypatch.setattr(limits, "EXPANSION_FACTOR", 0)
    monkeypatch.setattr(limits, "EXPANSION_FLOOR", len(SMALL))
    assert layers.add(blob, GZIP).contents() == SMALL_FILES


NAMES = st.text(st.sampled_from("abä .-_é模"), min_size=1, max_size=60).filter(
    lambda name: name.strip(".") and not name.startswith(".wh.")
)
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=6).map("/".join), st.binary(max_size=1500), max_size=8
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES, form=st.sampled_from(["gnu", "pax", "ustar", "v7"]), seed=st.integers(0, 99))
def test_the_same_as_gnu_tar(tmp_path_factory, tree, form, seed):
    """What GNU tar packs is unpacked to what GNU tar unpacks."""
    root = tmp_path_factory.mktemp("gnu")
    source, out = root / "source", root / "out"
    source.mkdir()
    out.mkdir()
    for path, data in tree.items():
        try:
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(data)
        except OSError:
            continue  # both a file and a directory
    found = sorted(p for p in source.rglob("*") if p.is_file())
    if found:
        (source / "hard").hardlink_to(random.Random(seed).choice(found))
        (source / "soft").symlink_to("hard")
    pack = ["tar", "-C", source, "--format", form, "-cf", root / "tar", "."]
    if subprocess.run(pack, capture_output=True, check=False).returncode:
        return  # a name that the format cannot hold
    subprocess.run(["tar", "-C", out, "-xf", root / "tar"], check=True)
    layers = Layers(root)
    layers.add_file(root / "tar", TAR)
    expected = {
        str(p.relative_to(out)): f"-> {p.readlink()}" if p.is_symlink() else p.read_bytes()
        for p in out.rglob("*")
        if p.is_symlink() or p.is_file()
    }
    assert layers.contents() == expected
    shutil.rmtree(root)


def test_a_directory_of_oras(layers, tmp_path):
    """What oras makes of a directory is unpacked below the directory's own name."""
    (tmp_path / "weights" / "sub").mkdir(parents=True)
    (tmp_path / "weights" / "sub" / "a").write_bytes(b"1")
    packed = Path(oras.utils.make_targz(str(tmp_path / "weights"), str(tmp_path / "packed")))
    layers.add_file(packed, GZIP)
    assert layers.contents() == {"weights/sub/a": b"1"}


def test_zstd_blobs_without_content_size_are_read(layers):
    """Streamed frames do not say how long they are."""
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    assert layers.add(packer.compress(SMALL) + packer.flush(), ZSTD).contents() == SMALL_FILES
