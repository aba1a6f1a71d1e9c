import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.spec.errors import ArtifactError, BadIndex, HostilePath
from modelpack.spec.index import ChunkIndex, FileEntry, Header, LayerEntry, decode
from modelpack.spec.tarrule import literals

DIGEST = "sha256:" + "1" * 64


def framed(files):
    return sum(len(part) for part in literals(files)) + sum(size for _, size in files)


def make(files, chunk_size=10, **changes):
    """An index of one layer, each file cut at `chunk_size`."""
    lengths, entries = [], []
    for path, size in files:
        own = [chunk_size] * (size // chunk_size) + (
            [size % chunk_size] if size % chunk_size else []
        )
        lengths += own
        entries.append(FileEntry(path, size, len(own)))
    layer = LayerEntry(DIGEST, changes.pop("layer_size", framed(files)), tuple(entries))
    header = Header("blake3", chunk_size, (layer,))
    header = msgspec.structs.replace(header, **changes)
    digests = b"".join(bytes([n % 256]) * 32 for n in range(len(lengths)))
    return header, lengths, digests


def index(files, **changes):
    header, lengths, digests = make(files, **changes)
    return ChunkIndex(header, lengths, lengths, memoryview(digests))


def test_the_binary_form_comes_back():
    """Decoding what was encoded gives the same files, chunks and bytes."""
    first = index([("a", 25), ("b/c", 0), ("d", 10)])
    data = first.encode()
    again = decode(data)
    assert again.files == first.files
    assert again.encode() == data
    assert [c.length for c in again.chunks(again.files[0])] == [10, 10, 5]
    assert again.total_bytes == 35


def test_chunks_know_where_they_are_stored():
    """Stored offsets count the tar headers and the padding before each payload."""
    found = index([("a", 25), ("d", 10)])
    assert [c.stored_offset for c in found.chunks(found.files[0])] == [512, 522, 532]
    assert next(iter(found.chunks(found.files[1]))).stored_offset == 512 + 512 + 512


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "md5"},
        {"codec": "lzma"},
        {"chunk_size": 0},
        {"chunk_size": 1 << 40},
        {"layer_size": 5},
        {"chunk_size": 9},
    ],
)
def test_contradictions_are_refused(changes):
    """An index that contradicts itself is refused before anything is fetched."""
    header, lengths, digests = make(
        [("a", 25)], **{k: v for k, v in changes.items() if k == "layer_size"}
    )
    header = msgspec.structs.replace(
        header, **{k: v for k, v in changes.items() if k != "layer_size"}
    )
    with pytest.raises(BadIndex):
        ChunkIndex(header, lengths, lengths, memoryview(digests))


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a//b", "a/./b", "", "x\0y", "a/" * 80 + "b", "n" * 300]
)
def test_hostile_paths_are_refused(path):
    """Paths that must not be created never get as far as a plan."""
    with pytest.raises(HostilePath):
        index([(path, 3)])


@pytest.mark.parametrize("files", [[("a", 1), ("a", 1)], [("a", 1), ("a/b", 1)]])
def test_colliding_paths_are_refused(files):
    """No path is given twice or is a directory of another."""
    with pytest.raises(HostilePath):
        index(files)


def test_a_newer_version_says_so():
    """An index of a later version asks for an upgrade instead of being misread."""
    data = bytearray(index([("a", 5)]).encode())
    data[8:12] = struct.pack("<I", 2)
    with pytest.raises(BadIndex, match="version 2") as caught:
        decode(bytes(data))
    assert "upgrade" in caught.value.hint


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damage_never_does_more_than_raise(junk, at, patch):
    """Random bytes, and valid bytes with damage, are decoded or refused; nothing else happens."""
    valid = bytearray(index([("a", 25), ("b", 7)]).encode())
    valid[at : at + len(patch)] = patch
    for data in (junk, b"mpkindex" + junk, bytes(valid)):
        try:
            decode(data)
        except ArtifactError:
            pass


def test_a_terabyte_costs_36_bytes_per_chunk():
    """238,600 chunks in 200 shards fit in 64 bytes each, and decode to the same number."""
    from bench.scale import terabyte_index

    big = terabyte_index()
    data = big.encode()
    assert len(data) / len(big) <= 64
    assert len(decode(data)) == len(big) == 238_600
