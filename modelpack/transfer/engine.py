"""The engine: pieces from a source, verified chunk by chunk, into a sink."""

import threading
from collections.abc import Iterable
from typing import Final

from modelpack.codec.zstd import FrameReader
from modelpack.spec.digest import CHUNK_HASHERS
from modelpack.spec.errors import IntegrityError, ModelpackError, RangeIgnored, Unavailable
from modelpack.spec.index import Coding
from modelpack.spec.limits import MIB
from modelpack.spec.progress import Progress
from modelpack.spec.source import BlobSource, ByteStream
from modelpack.transfer.blob import TRIES, pause
from modelpack.transfer.crew import work
from modelpack.transfer.piece import Part, Piece, Sink
from modelpack.transfer.stop import Stop

SLICE: Final = 1 * MIB  # stays in the processor's cache between receiving, hashing and writing
_TRIES_CORRUPT: Final = 3  # wrong bytes twice more: it is the registry's copy, not the wire


class Engine:
    """Fetches pieces on several threads.

    A chunk is completed only after its digest matched. A piece that fails half-way is continued
    after its last complete chunk; errors that are not permanent are tried again with growing,
    jittered pauses as long as chunks keep arriving in between.
    """

    def __init__(  # noqa: PLR0913  # where from, where to, in what form, who hears of it, how
        self,
        source: BlobSource,
        sink: Sink,
        coding: Coding,
        progress: Progress,
        *,
        workers: int,
        stop: Stop | None = None,
    ) -> None:
        """`stop` ends the work from outside: `fetch` raises the error that it was set with."""
        self._source = source
        self._sink = sink
        self._coding = coding
        self._progress = progress
        self._workers = workers
        self._stop = stop or Stop()
        self._lock = threading.Lock()
        self._no_ranges: set[str] = set()
        self._received = 0
        self._local = threading.local()

    @property
    def received(self) -> int:
        """Bytes that came over the wire so far, those of failed attempts included."""
        return self._received

    def fetch(self, pieces: Iterable[Piece]) -> frozenset[str]:
        """Fetch all pieces; returns the digests of blobs whose source ignores ranges.

        Pieces of such blobs are left out: plan them again as whole blobs. Raises the first
        permanent error, or the last of too many others.
        """
        work(pieces, self._fetch, workers=self._workers, stop=self._stop)
        return frozenset(self._no_ranges)

    def _fetch(self, piece: Piece) -> None:
        done = failures = 0
        while done < len(piece.parts) and not self._stop.is_set():
            if not piece.whole and piece.blob.digest in self._no_ranges:
                return
            try:
                for complete in self._attempt(piece, done):
                    done, failures = complete, 0
            except RangeIgnored:
                with self._lock:
                    self._no_ranges.add(piece.blob.digest)
            except ModelpackError as error:
                failures += 1
                if error.permanent or failures >= _tries(error):
                    raise
                if self._stop.wait(pause(error, failures)):
                    return

    def _attempt(self, piece: Piece, done: int) -> "Iterable[int]":
        """Receive parts from number `done` on; yields how many are complete."""
        parts = piece.parts[done:]
        # From the start of a whole blob no range is needed; to continue one is worth a try.
        from_start = piece.whole and (not done or piece.blob.digest in self._no_ranges)
        start = 0 if from_start else parts[0].stored_offset
        with self._source.open(piece.blob, start, piece.offset + piece.length - start) as stream:
            position = start
            for part in parts:
                self._skip(stream, part.stored_offset - position)
                if self._stop.is_set():
                    return
                if self._coding.codec and part.digest:
                    self._receive_frame(stream, part, piece)
                else:
                    self._receive(stream, part, piece)
                position = part.stored_offset + part.stored_length
                self._sink.complete(part)
                self._progress.advance(part.stored_length)
                done += 1
                yield done

    def _receive(self, stream: ByteStream, part: Part, piece: Piece) -> None:
        hasher = CHUNK_HASHERS[self._coding.algorithm]() if part.digest else None
        at = 0
        while at < part.length:
            data = self._read(stream, part.length - at)
            if hasher is not None:
                hasher.update(data)
            self._sink.write(part.file, part.offset + at, data)
            at += len(data)
        if hasher is not None:
            self._verify(part, hasher.digest(), piece)

    def _receive_frame(self, stream: ByteStream, part: Part, piece: Piece) -> None:
        frame = bytearray()
        while len(frame) < part.stored_length:
            frame += self._read(stream, part.stored_length - len(frame))
        data = self._reader().data(
            memoryview(frame), part.length, _name(part, piece), self._source.name
        )
        hasher = CHUNK_HASHERS[self._coding.algorithm]()
        hasher.update(data)
        self._verify(part, hasher.digest(), piece)
        self._sink.write(part.file, part.offset, data)

    def _skip(self, stream: ByteStream, length: int) -> None:
        while length:
            length -= len(self._read(stream, length))

    def _read(self, stream: ByteStream, wanted: int) -> bytes | memoryview:
        data = stream.read(min(wanted, SLICE))
        if not data:
            raise Unavailable(f"{self._source.name}: the stream ended {wanted} bytes early")
        with self._lock:
            self._received += len(data)
        return data

    def _verify(self, part: Part, got: bytes, piece: Piece) -> None:
        if got != part.digest:
            algorithm = self._coding.algorithm
            raise IntegrityError(
                _name(part, piece),
                expected=f"{algorithm}:{part.digest.hex()}",
                got=f"{algorithm}:{got.hex()}",
                source=self._source.name,
                hint="the registry's copy is damaged, or something on the way changes bytes: "
                "pull from another registry, or delete the artifact there and push it again",
            )

    def _reader(self) -> FrameReader:
        reader = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = FrameReader()
        return reader


def _name(part: Part, piece: Piece) -> str:
    return f"chunk {part.number} (layer {piece.blob.digest}, byte {part.stored_offset})"


def _tries(error: ModelpackError) -> int:
    return _TRIES_CORRUPT if isinstance(error, IntegrityError) else TRIES
