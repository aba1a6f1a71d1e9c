"""Archives that lie, explode or want out."""

import gzip
import io
import os
import random
import struct
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpack.codec import tarread
from modelpack.spec import limits
from modelpack.spec.errors import (
    BadManifest,
    DiskError,
    HostilePath,
    LimitExceeded,
    ModelpackError,
    Unsupported,
)
from tests.support.archives import (
    BLOCK,
    END,
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
    pax,
    record,
    skippable,
    zst,
)  # fmt: skip


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def sparse(**keys: bytes) -> bytes:
    return extended(b"".join(record(k.replace("_", "."), v) for k, v in keys.items()))


HOSTILE = {
    "parent": [file("../x", b"evil")],
    "parent inside": [file("a/../../x", b"evil")],
    "parent that stays inside": [file("a/../x", b"evil")],
    "parent directory": [directory("../x")],
    "absolute": [file("/etc/cron.d/x", b"evil")],
    "absolute with dots": [file("/../x", b"evil")],
    "absolute in PAX": [pax(path=b"/etc/x"), file("x", b"evil")],
    "absolute prefix": [file("x", b"evil", prefix=b"/etc")],
    "parent in GNU long name": [extended(b"../x\0", b"L"), file("x", b"evil")],
    "symlink outside": [link("l", "../../etc")],
    "symlink then file": [link("l", "d"), file("l/x", b"evil")],
    "absolute symlink then file": [link("l", "/etc"), file("l/x", b"evil")],
    "symlink then directory below": [link("l", "d"), directory("l/x"), file("l/x/y", b"evil")],
    "symlink then link below": [link("l", "d"), link("l/x", "y")],
    "symlink then hard link below": [file("f"), link("l", "d"), hardlink("l/x", "f")],
    "symlink in PAX outside": [pax(linkpath=b"../../etc"), link("l", "ok")],
    "symlink in GNU long link outside": [extended(b"../x\0", b"K"), link("l", "ok")],
    "symlink with NUL": [pax(linkpath=b"a\0b"), link("l", "ok")],
    "symlink without target": [link("l", "")],
    "symlink not UTF-8": [link("l", b"\xff")],
    "hard link outside": [hardlink("x", "../../etc/passwd")],
    "hard link absolute": [hardlink("x", "/etc/passwd")],
    "hard link to nothing": [hardlink("x", "y")],
    "hard link to later file": [hardlink("x", "y"), file("y")],
    "hard link to symlink": [link("l", "y"), hardlink("x", "l")],
    "hard link through symlink": [file("d/y"), link("l", "d"), hardlink("x", "l/y")],
    "hard link to directory": [file("d/y"), hardlink("x", "d")],
    "character device": [header("null", kind=b"3")],
    "block device": [header("sda", kind=b"4")],
    "FIFO": [header("pipe", kind=b"6")],
    "10 000 levels": [pax(path=b"a/" * 10_000 + b"b"), file("x", b"evil")],
    "65 levels": [pax(path=b"a/" * 64 + b"b"), file("x", b"evil")],
    "long component": [pax(path=b"a" * 256), file("x", b"evil")],
    "long path": [pax(path=b"/".join([b"a" * 200] * 30)), file("x", b"evil")],
    "not UTF-8": [file(b"model\xff", b"evil")],
    "not UTF-8 in PAX": [pax(path=b"model\xff"), file("x", b"evil")],
    "NUL in PAX": [pax(path=b"model\0.txt"), file("x", b"evil")],
    "file without name": [file("", b"evil")],
    "file named dot": [file("./.", b"evil")],
    "file with slash": [file("model/", b"evil")],
    "file through file": [file("a", b"x"), file("a/b", b"evil")],
}
BAD = {
    "wrong checksum": [file("a", b"x", checksum=b"0000000\0")],
    "no checksum": [file("a", b"x", checksum=bytes(8))],
    "checksum not octal": [file("a", b"x", checksum=b"00zz00\0 ")],
    "negative size": [header("a", b"\xff" * 12)],
    "signed size": [header("a", b"-0000000001\0")],
    "size with underscore": [header("a", b"0000000_001\0")],
    "size not octal": [header("a", b"00000000009\0")],
    "impossible size": [header("a", b"\x80\xff" + b"\xff" * 10)],
    "size beyond the archive": [header("a", 8**11 - 1)],
    "base-256 size beyond the archive": [header("a", b"\x80" + bytes(4) + b"\x7f" + bytes(6))],
    "PAX size beyond the archive": [pax(size=b"9000000000000000000"), file("a", b"x")],
    "PAX size too large": [pax(size=b"9999999999999999999"), file("a", b"x")],
    "PAX size with many digits": [pax(size=b"0" * 10_000 + b"1"), file("a", b"x")],
    "PAX size negative": [pax(size=b"-1"), file("a", b"x")],
    "PAX size not a number": [pax(size=b"1e3"), file("a", b"x")],
    "PAX size of a directory": [pax(size=b"512"), directory("d"), file("a", b"x")],
    "PAX size of a link": [pax(size=b"512"), link("l", "a"), file("a", b"x")],
    "size of a hard link": [file("a"), header("x", 512, b"1", "a"), file("b")],
    "PAX length too large": [extended(b"99 path=a\n"), file("a", b"x")],
    "PAX length too small": [extended(b"5 path=a\n"), file("a", b"x")],
    "PAX length zero": [extended(b"0 path=a\n"), file("a", b"x")],
    "PAX length huge": [extended(b"9" * 600 + b" path=a\n"), file("a", b"x")],
    "PAX without length": [extended(b"path=a\n"), file("a", b"x")],
    "PAX without equals": [extended(b"7 path\n"), file("a", b"x")],
    "PAX without newline": [extended(b"9 path=ab"), file("a", b"x")],
    "PAX with rest": [extended(record("path", b"a") + b"\0\0"), file("a", b"x")],
    "path given twice": [pax(path=b"a"), extended(b"b\0", b"L"), file("c", b"x")],
    "size given twice": [pax(size=b"1"), pax(size=b"1"), file("c", b"x")],
    "global path": [extended(record("path", b"a"), b"g"), file("c", b"x")],
    "global size": [extended(record("size", b"1"), b"g"), file("c", b"x")],
    "garbage after a zero block": [file("a", b"x"), bytes(BLOCK), b"garbage".ljust(BLOCK)],
    "no tar at all": [random.Random(3).randbytes(4 * BLOCK)],
}
UNSUPPORTED = {
    "GNU sparse": [file("a", b"x", kind=b"S", magic=b"ustar  \0")],
    "PAX sparse": [sparse(GNU_sparse_major=b"1"), file("a", b"x")],
    "global PAX sparse": [extended(record("GNU.sparse.size", b"9"), b"g"), file("a", b"x")],
    "multi-volume": [file("a", b"x", kind=b"M")],
    "unknown type": [file("a", b"x", kind=b"Z")],
}


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        pytest.param(parts, error, id=name)
        for table, error in (
            (HOSTILE, HostilePath),
            (BAD, BadManifest),
            (UNSUPPORTED, Unsupported),
        )
        for name, parts in table.items()
    ],
)
def test_refused(layers, parts, error):
    """Each trick is refused, naming the layer, and nothing appears outside the staging area."""
    with pytest.raises(error, match=r"^layer sha256:abc: ") as caught:
        layers.add(archive(*parts))
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert {path.name for path in layers.root.iterdir()} == {"blob", "staged"}
    assert all(path.name.isdigit() for path in layers.staged.iterdir())


@pytest.mark.parametrize(
    "parts", [pytest.param(parts, id=name) for name, parts in (HOSTILE | BAD | UNSUPPORTED).items()]
)
@pytest.mark.parametrize(("pack", "media_type"), [(gz, GZIP), (zst, ZSTD)])
def test_refused_when_compressed(layers, parts, pack, media_type):
    """Compression does not change what is refused."""
    with pytest.raises(ModelpackError, match=r"^layer sha256:abc: "):
        layers.add(pack(archive(*parts)), media_type)


WHOLE = archive(
    pax(path=b"first"), file("x", b"1" * 700), file("second", b"2"), link("l", "second"),
    extended(b"third\0", b"L"), file("x", b"3" * 1024), directory("d"),
)  # fmt: skip


@pytest.mark.parametrize("length", range(0, len(WHOLE) - BLOCK, BLOCK))
def test_cut_off_at_any_block(layers, length):
    """An archive that ends early is refused, even between two members."""
    with pytest.raises(BadManifest):
        layers.add(WHOLE[:length])


@pytest.mark.parametrize(("pack", "media_type"), [(gz, GZIP), (zst, ZSTD)])
@pytest.mark.parametrize("whole", [True, False], ids=["tar", "compressed"])
def test_cut_off_when_compressed(tmp_path, pack, media_type, whole):
    """A compressed archive, or the compressed data, that ends early is refused."""
    noise = archive(file("a", random.Random(4).randbytes(5000)), file("b"))
    blob = noise if whole else pack(noise)
    for number, length in enumerate(range(0, len(blob) - 2 * BLOCK, 173)):
        cut = blob[:length]
        root = tmp_path / str(number)
        root.mkdir()
        with pytest.raises(BadManifest):
            Layers(root).add(pack(cut) if whole else cut, media_type)


@pytest.mark.parametrize(
    ("blob", "media_type"),
    [
        (b"not gzip at all", GZIP),
        (WHOLE, GZIP),
        (b"", GZIP),
        (gz(b"")[:-8] + b"\1" * 8, GZIP),
        (gz(WHOLE[:BLOCK]) + b"garbage", GZIP),
        (gz(WHOLE[:2000])[:-8] + bytes(8) + gz(WHOLE[2000:]), GZIP),
        (WHOLE, ZSTD),
        (gz(WHOLE), ZSTD),
        (b"", ZSTD),
        (skippable(5), ZSTD),
        (struct.pack("<II", 0x184D2A50, 0xFFFFFFFF) + zst(WHOLE), ZSTD),
        (zst(WHOLE[:BLOCK]) + b"garbage", ZSTD),
        (b"", TAR),
        (gz(WHOLE), TAR),
    ],
)
def test_damaged_compression(layers, blob, media_type):
    """What is not what the media type says is refused in one line."""
    with pytest.raises(BadManifest, match=r"^layer sha256:abc: "):
        layers.add(blob, media_type)


@pytest.mark.parametrize(("pack", "media_type"), [(gz, GZIP), (zst, ZSTD)])
def test_a_bomb_that_says_so_is_refused_before_it_explodes(layers, pack, media_type):
    """A member of 10 GiB in a blob of kilobytes is refused at its header."""
    size = b"\x80" + (10 << 30).to_bytes(11, "big")
    with pytest.raises(LimitExceeded, match="expands to more than"):
        layers.add(pack(header("bomb", size) + bytes(1 << 20)), media_type)
    assert not list(layers.staged.iterdir())


def rle_frame(*parts: bytes | int) -> bytes:
    """Return a zstd frame of literal bytes and runs of MiB, four bytes for each 128 KiB of them.

    RFC 8878, sections 3.1.1.1 (header: a window of 2 MiB) and 3.1.1.2 (blocks: raw, RLE).
    """
    size = 128 << 10
    frame = bytearray(b"\x28\xb5\x2f\xfd\x00\x58")
    for part in parts:
        if isinstance(part, int):
            frame += ((size << 3 | 1 << 1).to_bytes(3, "little") + b"\0") * (part * 8)
        else:
            frame += (len(part) << 3).to_bytes(3, "little") + part
    return bytes(frame) + b"\1\0\0"


@pytest.mark.parametrize("media_type", [GZIP, ZSTD])
def test_a_bomb_of_many_members_stops_at_the_limit(layers, media_type, monkeypatch):
    """Files that fit one by one stop at the limit together, and memory stays flat."""
    monkeypatch.setattr(limits, "EXPANSION_FLOOR", 1 << 20)
    names = [header(f"bomb{number}", 1 << 20) for number in range(60)]
    if media_type == GZIP:
        blob = gzip.compress(b"".join(name + bytes(1 << 20) for name in names), 9)
    else:
        blob = rle_frame(*(part for name in names for part in (name, 1)), END)
    limit = limits.EXPANSION_FLOOR + limits.EXPANSION_FACTOR * len(blob)
    assert limit < 50 << 20
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded, match="expands to more than"):
            layers.add(blob, media_type)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert sum(path.stat().st_size for path in layers.staged.iterdir()) <= limit


@pytest.mark.parametrize(("pack", "media_type"), [(gz, GZIP), (zst, ZSTD)])
def test_a_bomb_of_nothing_but_headers_stops_at_the_limit(layers, pack, media_type, monkeypatch):
    """What is not a file's content counts as well."""
    monkeypatch.setattr(limits, "EXPANSION_FACTOR", 0)
    monkeypatch.setattr(limits, "EXPANSION_FLOOR", 100 * BLOCK)
    with pytest.raises(LimitExceeded, match="expands to more than 51200 bytes"):
        layers.add(pack(archive(*[directory("d")] * 200)), media_type)


def test_runs_in_zstd_frames_are_read(layers, monkeypatch):
    """The frames of the test above are valid: within the limit they are files."""
    monkeypatch.setattr(limits, "EXPANSION_FLOOR", 8 << 20)
    assert layers.add(rle_frame(header("a", 2 << 20), 2, END), ZSTD).contents() == {
        "a": bytes(2 << 20)
    }


def test_bombs_after_the_last_member_are_not_read(layers):
    """Data after the end of the archive costs nothing, however it expands."""
    blob = zst(archive(file("a", b"x"))) + rle_frame(100_000)
    assert layers.add(blob, ZSTD).contents() == {"a": b"x"}


def test_a_zstd_window_that_needs_too_much_memory(layers):
    """A frame that wants 1 GiB of memory to be decoded is refused."""
    frame = bytearray(rle_frame(WHOLE))
    frame[5] = (30 - 10) << 3  # RFC 8878, section 3.1.1.1.2
    with pytest.raises(LimitExceeded, match="window"):
        layers.add(bytes(frame), ZSTD)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_extended_headers_of_gigabytes_are_not_read(layers, kind):
    """A PAX header or long name that claims 8 GB costs nothing."""
    with pytest.raises(LimitExceeded, match="extended headers"):
        layers.add(header("x", 8**11 - 1, kind) + bytes(1 << 20))


def test_many_extended_headers_are_limited(layers, monkeypatch):
    """Extended headers that are small one by one are limited together."""
    monkeypatch.setattr(tarread, "EXTENDED_TOTAL", 10_000)
    with pytest.raises(LimitExceeded, match="10000 in all"):
        layers.add(archive(*[pax(comment=b"x" * 3000) + file("a")] * 4))


def test_headers_are_limited(layers, monkeypatch):
    """An endless run of headers that name no member ends at the limit."""
    monkeypatch.setattr(tarread, "HEADERS", 10)
    with pytest.raises(LimitExceeded, match="more than 10 headers"):
        layers.add(archive(*[extended(b"", b"g")] * 11))


def test_members_are_limited(layers, monkeypatch):
    """Files and directories together are limited."""
    monkeypatch.setattr(limits, "FILES", 10)
    with pytest.raises(LimitExceeded, match="more than 10 entries"):
        layers.add(archive(*[file(f"{n}") + directory(f"d{n}") for n in range(6)]))


def test_a_full_disk_is_reported_before_it_is_full(layers):
    """A file that does not fit is refused with the shortfall; the blob here is a hole of 1 EB."""
    size = 1 << 42
    blob = layers.root / "sparse"
    with blob.open("wb") as out:
        out.write(header("a", b"\x80" + size.to_bytes(11, "big")))
        try:
            os.truncate(blob, size + 3 * BLOCK)
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
    with pytest.raises(DiskError, match="too few"):
        layers.add_file(blob, TAR)
    assert not list(layers.staged.iterdir())


def test_modes_and_owners_do_not_survive(layers):
    """A set-id file is staged like any other: readable for its owner and nothing else."""
    layers.add(archive(file("su", b"x", mode=b"0006755\0")))
    (staged,) = layers.staged.iterdir()
    assert staged.stat().st_mode & 0o7777 == 0o600


def python_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, size in (("config.json", 30), ("größe/" + "x" * 120, 600), ("d/e", 0)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(b"y" * size))
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "config.json"
            tar.addfile(info)
    return buffer.getvalue()


VALID = python_archive()
PACKED = {TAR: VALID, GZIP: gz(VALID), ZSTD: zst(VALID)}
HEADERS = [at for at in range(0, len(VALID), BLOCK) if VALID[at + 257 : at + 262] == b"ustar"]
FIELDS = [0, 1, 124, 148, 156, 157, 257, 345]  # name, size, checksum, type, link, magic, prefix
TYPES = [b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"g", b"x", b"K", b"L", b"S"]
LIES = [bytes(12), b"\xff" * 12, b"\x80" + b"\xff" * 11, b"7" * 12, b"../../x\0", b"/etc/x\0"]
FIELD_BYTES = st.sampled_from([*TYPES, *LIES, b"soft/x\0"])
EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "add", "drop"]), st.integers(0, 1 << 20),
              st.binary(min_size=1, max_size=12))
    | st.tuples(st.just("field"), st.integers(0, 1 << 20), FIELD_BYTES | st.binary(max_size=12)),
    min_size=1, max_size=5,
)  # fmt: skip


def mutate(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    out = bytearray(data)
    for what, where, new in edits:
        at = where % (len(out) + 1)
        if what == "field":
            number, header_number = divmod(where, len(HEADERS))
            at = HEADERS[header_number] + FIELDS[number % len(FIELDS)]
        if what in ("set", "field"):
            out[at : at + len(new)] = new
        elif what == "add":
            out[at:at] = new * (BLOCK if where % 2 else 1)  # often in whole blocks
        elif what == "drop":
            del out[at : at + len(new) * (BLOCK if where % 2 else 1)]
        elif where % 7 == 0:
            del out[at:]
    return bytes(out)


def fix_checksums(data: bytes) -> bytes:
    """Let every block that was a header be one again, so that changes get past the checksum."""
    out = bytearray(data)
    for at in range(0, len(out) - BLOCK + 1, BLOCK):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + BLOCK])
    return bytes(out)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(media_type=st.sampled_from([TAR, GZIP, ZSTD]), edits=EDITS, inner=st.booleans())
def test_mutations_raise_only_our_errors(tmp_path_factory, media_type, edits, inner):
    """Whatever is changed in an archive, it is read or refused, and stays in its directory."""
    root = tmp_path_factory.mktemp("mutant")
    if inner or media_type == TAR:
        blob = fix_checksums(mutate(VALID, edits))
        blob = {TAR: bytes, GZIP: gz, ZSTD: zst}[media_type](blob)
    else:
        blob = mutate(PACKED[media_type], edits)
    layers = Layers(root)
    contents, message = attempt(layers, blob, media_type)
    assert "\n" not in message
    assert all(".." not in path.split("/") for path in contents)
    assert {path.name for path in root.iterdir()} == {"blob", "staged"}
    assert all(path.name.isdigit() and path.is_file() for path in layers.staged.iterdir())


def attempt(layers: Layers, blob: bytes, media_type: str) -> tuple[dict[str, bytes | str], str]:
    try:
        return layers.add(blob, media_type).contents(), ""
    except ModelpackError as error:
        return {}, str(error)


def test_pad_is_needed_for_the_last_payload(layers):
    """A payload whose padding is cut off is an archive that is cut off."""
    whole = archive(file("a", b"x" * 100))
    with pytest.raises(BadManifest, match="cut off"):
        layers.add(whole[: BLOCK + 200])
