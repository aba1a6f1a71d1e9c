import threading
from contextlib import contextmanager

import pytest
from blake3 import blake3

from modelpack.codec.zstd import FrameWriter
from modelpack.spec.errors import Denied, IntegrityError, RangeIgnored, Unavailable
from modelpack.spec.index import Coding
from modelpack.spec.manifest import describe
from modelpack.spec.progress import QUIET, Counter
from modelpack.transfer import engine as engine_module
from modelpack.transfer.engine import Engine
from modelpack.transfer.piece import Part
from modelpack.transfer.plan import pieces

CHUNK = 1000


class Blobs:
    """A source in memory that can be told to misbehave."""

    name = "memory"

    def __init__(self, data, *, ranges=True):
        self.data = data
        self.ranges = ranges
        self.faults = []
        self.requests = []

    @contextmanager
    def open(self, blob, offset, length):
        self.requests.append((offset, length))
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if not self.ranges and length < blob.size:
            raise RangeIgnored("the whole blob came")
        data = self.data[offset : offset + length]
        if callable(fault):
            data = fault(data)
        yield Stream(data)


class Stream:
    def __init__(self, data):
        self.data = data

    def read(self, size):
        part, self.data = self.data[: min(size, 300)], self.data[min(size, 300) :]
        return part


class Sink:
    """Keeps what was written, and which parts count."""

    def __init__(self):
        self.files = {}
        self.complete_parts = set()
        self.lock = threading.Lock()

    def write(self, file, offset, data):
        with self.lock:
            buffer = self.files.setdefault(file, bytearray())
            buffer.extend(bytes(max(0, offset + len(data) - len(buffer))))
            buffer[offset : offset + len(data)] = data

    def complete(self, part):
        with self.lock:
            assert part.number not in self.complete_parts
            self.complete_parts.add(part.number)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(engine_module, "pause", lambda error, failures: 0)


def parts_of(data):
    return [
        Part(n, blake3(data[at : at + CHUNK]).digest(), at, len(data[at : at + CHUNK]), 0, at,
             len(data[at : at + CHUNK]))
        for n, at in enumerate(range(0, len(data), CHUNK))
    ]  # fmt: skip


def run(source, data, *, coding=None, parts=None, size=4000, whole=frozenset(), workers=3):
    sink, progress = Sink(), Counter(QUIET)
    blob = describe("t", source.data)
    engine = Engine(source, sink, coding or Coding(), progress, workers=workers)
    plan = pieces(((0, p) for p in parts or parts_of(data)), (blob,), size=size, whole=whole)
    ignored = engine.fetch(plan)
    return sink, progress, engine, ignored


DATA = bytes(range(256)) * 50  # 12,800 bytes, thirteen chunks


def test_all_chunks_arrive_once():
    """Everything is written in place, counted once, and progress hears of every byte."""
    sink, progress, engine, ignored = run(Blobs(DATA), DATA)
    assert bytes(sink.files[0]) == DATA
    assert len(sink.complete_parts) == 13
    assert progress.total == engine.received == len(DATA)
    assert not ignored


def test_a_broken_stream_continues_after_its_last_whole_chunk():
    """What was verified is not asked for again."""
    source = Blobs(DATA)
    source.faults = [lambda data: data[:2500]]
    sink, _, engine, _ = run(source, DATA, workers=1, size=1 << 20)
    assert bytes(sink.files[0]) == DATA
    assert source.requests == [(0, 12800), (2000, 10800)]
    assert engine.received == len(DATA) + 500


def test_wrong_bytes_never_count_and_end_in_an_error_that_names_them():
    """A chunk whose digest does not match is tried twice more, then named with its source."""
    damaged = bytearray(DATA)
    damaged[5500] ^= 1
    source = Blobs(bytes(damaged))
    with pytest.raises(IntegrityError, match=r"chunk 5 .* from memory") as caught:
        run(source, DATA, workers=1)
    assert caught.value.source == "memory"
    assert sum(1 for offset, _ in source.requests if offset == 5000) == 2


def test_a_passing_error_of_the_wire_is_repaired():
    """Bytes that were flipped on the way are right the second time."""
    source = Blobs(DATA)
    source.faults = [lambda data: b"\0" + data[1:]]
    source.data = b"\1" + DATA[1:]
    data = source.data
    sink, *_ = run(source, data, workers=1)
    assert bytes(sink.files[0]) == data


def test_permanent_errors_are_not_tried_again():
    """A refusal stops the work at once."""
    source = Blobs(DATA)
    source.faults = [Denied("no")]
    with pytest.raises(Denied):
        run(source, DATA, workers=1)
    assert len(source.requests) == 1


def test_tries_without_progress_are_bounded():
    """A source that is down is given up after a few tries in a row."""
    source = Blobs(DATA)
    source.faults = [Unavailable("down")] * 50
    with pytest.raises(Unavailable):
        run(source, DATA, workers=1)
    assert len(source.requests) == 6


def test_tries_are_counted_anew_after_every_chunk():
    """A slow but living source is never given up."""
    source = Blobs(DATA)
    source.faults = [lambda data: data[:1500]] * 12
    sink, *_ = run(source, DATA, workers=1, size=1 << 20)
    assert bytes(sink.files[0]) == DATA


def test_sources_without_ranges_are_planned_again_as_a_whole():
    """Ignored ranges are reported, and the whole blob in one piece works."""
    source = Blobs(DATA, ranges=False)
    sink, _, _, ignored = run(source, DATA)
    assert ignored == {describe("t", DATA).digest}
    assert not sink.complete_parts
    sink, *_ = run(source, DATA, whole=ignored)
    assert bytes(sink.files[0]) == DATA


def test_frames_are_decoded_and_verified():
    """Compressed chunks are checked by the digest of what they hold."""
    writer = FrameWriter()
    chunks = [DATA[at : at + CHUNK] for at in range(0, len(DATA), CHUNK)]
    frames = [writer.frame(chunk) for chunk in chunks]
    parts, at = [], 0
    for n, (chunk, frame) in enumerate(zip(chunks, frames, strict=True)):
        parts.append(Part(n, blake3(chunk).digest(), at, len(frame), 0, n * CHUNK, len(chunk)))
        at += len(frame)
    sink, *_ = run(Blobs(b"".join(frames)), DATA, parts=parts, coding=Coding(codec="zstd"))
    assert bytes(sink.files[0]) == DATA
    parts[3] = Part(
        3, parts[3].digest, parts[3].stored_offset, parts[3].stored_length, 0, 3000, 999
    )
    with pytest.raises(IntegrityError, match="chunk 3"):
        run(Blobs(b"".join(frames)), DATA, parts=parts, coding=Coding(codec="zstd"))
