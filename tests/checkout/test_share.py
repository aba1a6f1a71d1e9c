"""Sharing blocks instead of copying: which ranges, and that nothing is believed."""

import os
import random
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.checkout.area import beside
from modelpack.checkout.reuse import Local
from modelpack.checkout.share import Place, Run, Shared, runs
from modelpack.checkout.staging import Staging
from modelpack.chunks.table import TableCache
from modelpack.disk.extents import shared_bytes
from modelpack.spec.digest import CHUNK_HASHERS, Digest
from modelpack.spec.reference import Reference
from modelpack.state.database import Database
from modelpack.state.digests import DigestCache
from modelpack.transfer.piece import Part
from modelpack.verbs.pull import PullOptions, pull
from modelpack.verbs.push import PushOptions, push
from tests.support.mounts import SHARING, free_bytes, loop_mount
from tests.support.weights import make_tensors, safetensors, tree

ONE = Digest("sha256", "1" * 64)
MB = 1_000_000


@pytest.fixture(params=SHARING)
def disk(request, tmp_path):
    with loop_mount(tmp_path, request.param) as point:
        yield point


@pytest.fixture
def xfs(tmp_path):
    with loop_mount(tmp_path, "xfs") as point:
        yield point


def blake3(data):
    hasher = CHUNK_HASHERS["blake3"]()
    hasher.update(data)
    return hasher.digest()


def parts_in(data, lengths, file=0, shift=0):
    """The chunks of some bytes, as parts of a staged file that has `shift` bytes before them."""
    offsets = accumulate(lengths, initial=0)
    return [
        Part(n, blake3(data[at : at + length]), 0, length, file, at + shift, length)
        for n, (at, length) in enumerate(zip(offsets, lengths, strict=False))
    ]


def local_of(source, parts, shift=0):
    local = Local(lambda _: True, TableCache(DigestCache(Database(None)), "blake3"))
    for part in parts:
        local.add(part.digest, Place(source, part.offset - shift, part.length))
    return local


@given(st.lists(st.integers(1, 50), max_size=12), st.integers(0, 700), st.integers(0, 700))
def test_gaps_are_what_is_not_shared(steps, start, end):
    """Together with what is shared they are the range, each byte once."""
    edges = list(accumulate(steps))
    shared = Shared()
    shared._ranges[0] = list(zip(edges[::2], edges[1::2], strict=False))
    inside = {n for low, high in shared._ranges[0] for n in range(low, high)}
    gaps = list(shared.gaps(0, start, end))
    assert all(low < high for low, high in gaps)
    assert [n for low, high in gaps for n in range(low, high)] == [
        n for n in range(start, end) if n not in inside
    ]


def test_neighbours_are_one_run():
    """A run ends where the file, the source, or the distance between them changes."""
    here, there = Path("here"), Path("there")
    places = [
        Place(here, 0, 10), Place(here, 10, 10), Place(there, 20, 10), None,
        Place(there, 40, 10), Place(there, 51, 10),
    ]  # fmt: skip
    parts = [Part(n, b"", 0, 10, 0, n * 10, 10) for n in range(len(places))]
    assert list(runs(parts, lambda part: places[part.number])) == [
        Run(0, 0, Place(here, 0, 20)), Run(0, 20, Place(there, 20, 10)),
        Run(0, 40, Place(there, 40, 10)), Run(0, 50, Place(there, 51, 10)),
    ]  # fmt: skip
    other = [Part(0, b"", 0, 10, 0, 0, 10), Part(1, b"", 0, 10, 1, 10, 10)]
    assert len(list(runs(other, lambda part: places[part.number]))) == 2


@pytest.mark.parametrize(
    ("offset", "source", "length", "inside"),
    [
        (0, 0, 8192, (0, 8192)),
        (100, 4196, 8192, (4096, 8192)),
        (100, 101, 8192, (0, 0)),
        (100, 100, 4095, (0, 0)),
        (4095, 4095, 2, (0, 0)),
        (4096, 0, 4097, (4096, 8192)),
    ],
)
def test_only_whole_blocks_are_shared(offset, source, length, inside):
    """And only where both offsets are at the same place of a block."""
    assert Run(0, offset, Place(Path("x"), source, length)).inside(4096) == inside


@pytest.mark.parametrize("shift", [0, 4096, 3 * 4096, 1, 4095])
def test_shared_or_copied_the_bytes_are_the_same(disk, shift):
    """Chunks of any length, at any distance, in files with or without space of their own."""
    generator = random.Random(shift)
    data = generator.randbytes(3 * MB)
    lengths = [generator.choice([1, 100, 4096, 5000, 70_000]) for _ in range(100)]
    data = data[: sum(lengths)]
    (disk / "source").write_bytes(data)
    parts = [part for part in parts_in(data, lengths, shift=shift) if generator.random() < 0.8]
    local = local_of(disk / "source", parts, shift)
    with Staging(beside(disk / "m"), ONE, len(lengths)) as staging:
        if generator.random() < 0.5:
            staging.allocate({0: len(data) + shift})
        staging.create({0: len(data) + shift})
        shared = local.share(parts, staging, workers=3)
        staging.allocate({0: len(data) + shift}, shared)
        done = local.copy(parts, staging, shared, workers=3)
        staged = staging.path(0).read_bytes()
        for part in parts:
            at = part.offset - shift
            assert staged[part.offset : part.offset + part.length] == data[at : at + part.length]
            assert not staging.missing(part.number)
    assert done.bytes_ == sum(part.length for part in parts)
    assert (done.cloned > 0) == (shift % 4096 == 0)


def test_shared_blocks_replace_those_that_were_reserved(xfs):
    """A file that had all its space gives it back; shared blocks are counted as such.

    (Of btrfs an extent stays until nothing of it is used: one more reason to reserve afterwards.)
    """
    data = random.Random(1).randbytes(20 * MB)
    (xfs / "source").write_bytes(data)
    parts = parts_in(data, [MB] * 20)
    local = local_of(xfs / "source", parts)
    free = free_bytes(xfs)
    with Staging(beside(xfs / "m"), ONE, 20) as staging:
        staging.allocate({0: len(data)})
        assert free_bytes(xfs) < free - 20 * MB
        shared = local.share(parts, staging, workers=2)
        assert local.copy(parts, staging, shared, workers=2).cloned > 19 * MB
        assert free_bytes(xfs) > free - MB
        assert staging.lacking({0: len(data)}) == 0
        with staging.path(0).open("rb") as file:
            assert shared_bytes(file.fileno()) > 19 * MB
        assert staging.path(0).read_bytes() == data


def test_nothing_is_reserved_for_what_is_shared(disk):
    """A file comes to a disk that has no room for it, if what is not shared of it fits."""
    data = random.Random(2).randbytes(20 * MB)
    (disk / "source").write_bytes(data)
    parts = parts_in(data, [MB] * 20)
    local = local_of(disk / "source", parts)
    with (disk / "filling").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(disk) - 4 * MB)
    with Staging(beside(disk / "m"), ONE, 20) as staging:
        staging.create({0: len(data)})
        shared = local.share(parts, staging, workers=2)
        staging.allocate({0: len(data)}, shared)
        local.copy(parts, staging, shared, workers=2)
        assert staging.path(0).read_bytes() == data


def test_a_source_that_changes_after_it_was_found(disk):
    """What is shared with it by then is hashed afterwards: wrong chunks do not count."""
    data = random.Random(3).randbytes(10 * MB)
    source = disk / "source"
    source.write_bytes(data)
    parts = parts_in(data, [MB] * 10)
    local = local_of(source, parts)
    with Staging(beside(disk / "m"), ONE, 10) as staging:
        staging.create({0: len(data)})
        with source.open("r+b") as file:
            file.seek(5 * MB + 7)
            file.write(b"edited")
        shared = local.share(parts, staging, workers=2)
        with source.open("r+b") as file:  # and this one does not reach what is shared
            file.seek(2 * MB + 7000)
            file.write(b"edited")
        local.copy(parts, staging, shared, workers=2)
        assert [staging.missing(n) for n in range(10)] == [n == 5 for n in range(10)]
        assert staging.path(0).read_bytes()[: 5 * MB] == data[: 5 * MB]


def test_a_source_that_is_gone_or_too_short(disk):
    """It is no help and no harm."""
    data = random.Random(4).randbytes(4 * MB)
    (disk / "short").write_bytes(data[: 2 * MB])
    parts = parts_in(data, [MB] * 4)
    for source, helped in ((disk / "short", 2), (disk / "gone", 0)):
        local = local_of(source, parts)
        with Staging(beside(disk / f"m-{source.name}"), ONE, 4) as staging:
            staging.create({0: len(data)})
            shared = local.share(parts, staging, workers=2)
            assert local.copy(parts, staging, shared, workers=2).bytes_ == helped * MB


def test_a_pull_shares_with_what_is_in_place(disk, registry, name, tmp_path, session):
    """A second version pulled over the first takes its changes, and says how much is shared."""
    tensors = make_tensors(1, [MB] * 20)
    reference = Reference.parse(f"{registry.host}/{name}:v1")
    for version in (1, 2):
        tensors["layers.3.weight"] = bytes([version]) * MB
        safetensors(tmp_path / "model" / "model.safetensors", tensors)
        push(str(tmp_path / "model"), reference, session(), PushOptions())
        pulled = pull(reference, disk / "out", session(), PullOptions())
        assert tree(disk / "out") == tree(tmp_path / "model")
    assert pulled.bytes_moved < 1.1 * MB
    assert pulled.bytes_cloned > 18 * MB
    assert pulled.bytes_reused - pulled.bytes_cloned < 100_000
    free = free_bytes(disk)
    again = pull(reference, disk / "again", session(), PullOptions(reuse=[disk / "out"]))
    assert again.bytes_moved < 10_000
    assert free - free_bytes(disk) < 300_000
    assert tree(disk / "again") == tree(tmp_path / "model")
