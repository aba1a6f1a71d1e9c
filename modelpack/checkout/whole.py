"""Pulling without a chunk index: whole layers, checked by their SHA-256, then unpacked.

Layers still come by parallel ranges and survive interruptions; only their verification has to wait
until they are complete, and what is not a raw file is written twice.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Final

from modelpack.checkout.indexed import Moved, flush
from modelpack.checkout.place import Staged
from modelpack.checkout.staging import Staging
from modelpack.checkout.tree import StagedLink, StagedTree
from modelpack.checkout.unpack import unpack
from modelpack.spec.errors import IntegrityError
from modelpack.spec.index import Coding
from modelpack.spec.kinds import LayerPlan
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import Descriptor
from modelpack.spec.progress import Progress, Reporter
from modelpack.spec.source import BlobSource
from modelpack.transfer.crew import work
from modelpack.transfer.engine import Engine
from modelpack.transfer.piece import Part
from modelpack.transfer.plan import SLICE, pieces, side_by_side, slices
from modelpack.transfer.stop import Stop

_TREE: Final = "tree"


@dataclass(frozen=True)
class WholeCheckout:
    """One artifact without a chunk index, on its way to a directory."""

    layers: Sequence[LayerPlan]
    source: BlobSource
    reporter: Reporter
    jobs: int
    stop: Stop = field(default_factory=Stop)

    @cached_property
    def _firsts(self) -> list[int]:
        return list(accumulate((_count(layer.descriptor) for layer in self.layers), initial=0))

    @property
    def parts(self) -> int:
        """How many parts there are to stage."""
        return sum(_count(layer.descriptor) for layer in self.layers)

    def stage(self, staging: Staging) -> tuple[Moved, dict[str, Staged]]:
        """Fetch, verify and unpack; returns what may be placed, by path, durable.

        Raises IntegrityError naming the layer whose bytes are not its digest; HostilePath and its
        kin for layers that must not be unpacked.
        """
        received = self._fetch(staging)
        self._verify(staging)
        tree = StagedTree(_emptied(staging.directory / _TREE))
        progress = self.reporter.bar("unpacking")
        for number, layer in enumerate(self.layers):
            if layer.form == "raw":
                tree.adopt(layer.path, staging.path(number))
                continue
            with staging.path(number).open("rb") as blob:
                unpack(
                    blob, layer.descriptor.media_type, tree,
                    layer=layer.descriptor.digest, progress=progress,
                )  # fmt: skip
        staged = _entries(tree)
        flush([entry.file for entry in staged.values() if entry.file], self.reporter, self.jobs)
        return Moved(received, 0), staged

    def _fetch(self, staging: Staging) -> int:
        blobs = tuple(layer.descriptor for layer in self.layers)
        for number in range(len(blobs)):
            path = staging.path(number)
            if not path.exists() or not path.stat().st_size:
                staging.forget(part.number for _, part in self._parts(number))
        staging.allocate({number: blob.size for number, blob in enumerate(blobs)})
        progress = self.reporter.bar("fetching")
        progress.expect(
            sum(part.length for n in range(len(blobs)) for _, part in self._missing(staging, n))
        )
        engine = Engine(self.source, staging, Coding(), progress, workers=self.jobs, stop=self.stop)
        whole: frozenset[str] = frozenset()
        while True:
            layers = (pieces(self._missing(staging, number), blobs, whole=whole)
                      for number in range(len(blobs)))  # fmt: skip
            without_ranges = engine.fetch(side_by_side(layers, self.jobs))
            if without_ranges <= whole:
                return engine.received
            whole = without_ranges

    def _parts(self, number: int) -> Iterator[tuple[int, Part]]:
        return (
            (number, part)
            for part in slices(self.layers[number].descriptor, number, self._firsts[number])
        )

    def _missing(self, staging: Staging, number: int) -> Iterator[tuple[int, Part]]:
        return (item for item in self._parts(number) if staging.missing(item[1].number))

    def _verify(self, staging: Staging) -> None:
        progress = self.reporter.bar("verifying")
        progress.expect(sum(layer.descriptor.size for layer in self.layers))

        def verify(number: int) -> None:
            blob = self.layers[number].descriptor
            try:
                verify_blob(staging.path(number), blob, self.source.name, progress)
            except IntegrityError:
                # Which part is wrong cannot be known: all of it is fetched again.
                staging.path(number).unlink()
                raise

        work(range(len(self.layers)), verify, workers=self.jobs, stop=self.stop)


def verify_blob(path: Path, blob: Descriptor, source: str, progress: Progress) -> None:
    """Raise IntegrityError unless the file has the digest of the blob."""
    hasher = blob.checked_digest.hasher()
    with path.open("rb") as file:
        buffer = memoryview(bytearray(MIB))
        while got := file.readinto(buffer):
            hasher.update(buffer[:got])
            progress.advance(got)
    if hasher.hexdigest() != blob.checked_digest.hex:
        raise IntegrityError(
            f"layer {blob.digest}", expected=blob.checked_digest.hex, got=hasher.hexdigest(),
            source=source, hint="the registry's copy is damaged: "
            "delete the artifact there and push it again",
        )  # fmt: skip


def _entries(tree: StagedTree) -> dict[str, Staged]:
    return {
        path: Staged(None, entry.target) if isinstance(entry, StagedLink) else Staged(entry.file)
        for path, entry in tree.checked().items()
    }


def _emptied(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    return directory


def _count(blob: Descriptor) -> int:
    return -(-blob.size // SLICE)
