"""`modelpack copy`: an artifact from one place to another, digests preserved."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from modelpack.spec.digest import Digest
from modelpack.spec.errors import InputError, NotFound
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import Descriptor, Index, Manifest, decode
from modelpack.spec.progress import Counter
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository
from modelpack.spec.source import BlobSource
from modelpack.state.homes import Homes
from modelpack.transfer.crew import work
from modelpack.verbs.session import Session


class CopyResult(msgspec.Struct, frozen=True):
    """What happened. All bytes are blob bytes."""

    source: str
    reference: str
    digest: str
    bytes_total: int
    bytes_moved: int
    bytes_reused: int
    seconds: float
    manifests: int
    blobs: int


@dataclass(frozen=True, slots=True)
class BlobContent:
    """A blob of a source as content to publish; read through, never stored in between."""

    blob: Descriptor
    source: BlobSource

    def read_from(self, offset: int) -> Iterator[bytes | memoryview]:
        """Yield the bytes from `offset` (see Content); the receiver checks the digest."""
        if offset >= self.blob.size:
            return
        with self.source.open(self.blob, offset, self.blob.size - offset) as stream:
            while data := stream.read(MIB):
                yield data


def copy(source: Reference, destination: Reference, session: Session) -> CopyResult:
    """Copy `source` to `destination`, byte for byte, with everything it names.

    An image index is copied with all its manifests. Manifests are put last, so that a tag never
    names something incomplete; blobs that are there are not sent. Raises as push and pull do.
    """
    started = time.monotonic()
    if destination.digest:
        raise InputError(f"{destination}: the digest is that of the source; give a tag, or nothing")
    with session.repository(source) as origin, session.repository(destination) as goal:
        descriptor, data = origin.manifest(source.target)
        manifests = list(_manifests(origin, descriptor, data))
        blobs = {
            blob.digest: blob
            for _, _, manifest in manifests
            if isinstance(manifest, Manifest)
            for blob in (manifest.config, *manifest.layers)
        }
        homes = Homes(session.database, destination, _neighbour(source, destination))
        moved = Counter(session.reporter.bar("copying"))
        reused = Counter(session.reporter.bar("already there"))
        moved.expect(sum(blob.size for blob in blobs.values()))

        def transfer(blob: Descriptor) -> None:
            if goal.stat_blob(blob.digest) == blob.size or any(
                goal.mount_blob(blob, home) for home in homes.of(blob.digest)
            ):
                moved.expect(-blob.size)
                reused.advance(blob.size)
            else:
                goal.put_blob(BlobContent(blob, origin), moved)
            homes.add(blob.digest)

        work(blobs.values(), transfer, workers=session.jobs)
        for number, (entry, raw, _) in enumerate(manifests):
            last = number == len(manifests) - 1
            goal.put_manifest(raw, entry.media_type, destination.target if last else "")
    return CopyResult(
        source=str(source.at(descriptor.checked_digest)),
        reference=str(destination.at(descriptor.checked_digest)),
        digest=descriptor.digest,
        bytes_total=sum(blob.size for blob in blobs.values()),
        bytes_moved=moved.total,
        bytes_reused=reused.total,
        seconds=round(time.monotonic() - started, 3),
        manifests=len(manifests),
        blobs=len(blobs),
    )


def _manifests(
    origin: Repository, descriptor: Descriptor, data: bytes, depth: int = 0
) -> Iterator[tuple[Descriptor, bytes, Manifest | Index]]:
    """Yield all manifests below and including this one, children first."""
    manifest = decode(data, f"{origin.name}@{descriptor.digest}")
    if isinstance(manifest, Index):
        if depth:
            raise InputError(f"{origin.name}@{descriptor.digest}: an index inside an index")
        for entry in {one.digest: one for one in manifest.manifests}.values():
            try:
                child, raw = origin.manifest(str(Digest.parse(entry.digest)))
            except NotFound as error:
                raise NotFound(
                    f"{origin.name}: the index names {entry.digest}, which is not there",
                    hint="copy one platform of it by its digest",
                ) from error
            yield from _manifests(origin, child, raw, depth + 1)
    yield descriptor, data, manifest


def _neighbour(source: Reference, destination: Reference) -> tuple[str, ...]:
    same = source.registry and source.registry == destination.registry
    return (source.repository,) if same and source.repository != destination.repository else ()
