import io
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.spec.tarrule import header, literals

names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 255)
paths = st.lists(names, min_size=1, max_size=12).map("/".join)


def archive(files):
    parts = literals([(path, len(data)) for path, data in files])
    payloads = [data for _, data in files]
    return b"".join(a + b for a, b in zip(parts, [*payloads, b""], strict=True))


@settings(deadline=None)
@given(st.lists(st.tuples(paths, st.binary(max_size=1500)), max_size=8, unique_by=lambda f: f[0]))
def test_python_reads_what_the_rule_writes(files):
    """Every path and payload comes back from the archive, owned by nobody, at the epoch."""
    with tarfile.open(fileobj=io.BytesIO(archive(files))) as tar:
        members = tar.getmembers()
        found = [(m.name, tar.extractfile(m).read()) for m in members]
    assert found == files
    assert all((m.mtime, m.uid, m.gid, m.mode) == (0, 0, 0, 0o644) for m in members)


def test_gnu_tar_reads_it_too(tmp_path):
    """GNU tar extracts long, deep, blank and foreign names to the same files."""
    files = [("a b/" + "d" * 120 + "/" + "f" * 101, b"1"), ("模型/ünï.bin", b"2"), ("plain", b"")]
    (tmp_path / "x.tar").write_bytes(archive(files))
    subprocess.run(["tar", "xf", "x.tar"], cwd=tmp_path, check=True)
    for path, data in files:
        assert (tmp_path / path).read_bytes() == data


@pytest.mark.parametrize(
    ("path", "blocks"),
    [
        ("x" * 100, 1),
        ("x" * 101, 3),
        ("p" * 155 + "/" + "n" * 100, 1),
        ("p" * 156 + "/n" * 60, 3),
        ("é", 3),
    ],
)
def test_extended_headers_only_where_needed(path, blocks):
    """USTAR says what it can; PAX, two blocks more, says the rest."""
    assert len(header(path, 5)) == blocks * 512


@pytest.mark.parametrize(("size", "blocks"), [(8**11 - 1, 1), (8**11, 3), (1 << 45, 3)])
def test_files_of_8_gib_and_more(size, blocks):
    """Sizes that eleven octal digits cannot say are said by PAX."""
    block = header("big", size)
    assert len(block) == blocks * 512
    stream = io.BytesIO(block)
    with tarfile.open(fileobj=stream) as tar:
        assert tar.next().size == size


def test_nothing_follows_the_two_zero_blocks():
    """There is no record padding: modctl hashes only what its reader consumed."""
    assert archive([("a", b"x" * 512)]) == header("a", 512) + b"x" * 512 + bytes(1024)
