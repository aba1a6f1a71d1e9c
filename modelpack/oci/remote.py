"""A repository of a registry over HTTP (OCI distribution-spec v1.1)."""

from contextlib import AbstractContextManager

from modelpack.oci import manifests, referrers, upload
from modelpack.oci.answers import body, check
from modelpack.oci.blobs import BlobReader
from modelpack.oci.exchange import PULL, Exchange
from modelpack.oci.settings import ConnectSettings
from modelpack.spec import limits
from modelpack.spec.errors import ModelpackError
from modelpack.spec.manifest import Descriptor
from modelpack.spec.progress import Progress
from modelpack.spec.source import ByteStream, Content


class RemoteRepository:
    """One repository (a `spec.registry.Repository`).

    Everything but `open` is tried again under the retry policy of the settings; who reads a stream
    knows better where to continue.
    """

    def __init__(self, registry: str, repository: str, settings: ConnectSettings) -> None:
        self.name = f"{registry}/{repository}"
        self._registry = registry
        self._exchange = Exchange(registry, repository, settings)
        self._blobs = BlobReader(self._exchange)

    def close(self) -> None:
        """Drop connections."""
        self._blobs.close()
        self._exchange.close()

    def ping(self) -> None:
        """Ask whether there is a registry that accepts our credentials."""
        self._exchange.retry(self._ping)

    def manifest(self, target: str) -> tuple[Descriptor, bytes]:
        """Fetch a manifest (see Repository)."""
        return self._exchange.retry(lambda: manifests.get(self._exchange, target))

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        """Store a manifest and see that it is stored (see Repository).

        If it has a subject and the registry does not index referrers, it is named in the fallback
        tag of the subject.
        """
        stored, subject = self._exchange.retry(
            lambda: manifests.put(self._exchange, data, media_type, tag)
        )
        if subject is None:
            referrers.add_to_fallback(self._exchange, data, stored)
        return stored

    def delete_manifest(self, target: str) -> None:
        """Remove a manifest (see Repository and `manifests.delete`)."""
        manifests.delete(self._exchange, target)

    def tags(self) -> list[str]:
        """List all tags (see Repository)."""
        return manifests.tags(self._exchange)

    def stat_blob(self, digest: str) -> int | None:
        """Return the size of a blob (see Repository)."""
        return self._exchange.retry(lambda: self._blobs.size(digest))

    def put_blob(self, content: Content, progress: Progress) -> None:
        """Upload a blob (see Repository and `upload`)."""
        upload.put(self._exchange, self._blobs, content, progress)

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:
        """Mount a blob from a neighbour (see Repository)."""
        try:
            return self._exchange.retry(lambda: upload.mount(self._exchange, blob, repository))
        except ModelpackError:
            return False  # a neighbour that may not be read is no reason to fail

    def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """List referrers (see Repository)."""
        return referrers.find(self._exchange, digest, artifact_type)

    def open(
        self, blob: Descriptor, offset: int, length: int
    ) -> AbstractContextManager[ByteStream]:
        """Stream a range (see BlobSource)."""
        return self._blobs.open(blob, offset, length)

    def _ping(self) -> None:
        response = self._exchange.send("GET", f"{self._exchange.base}/v2/", PULL)
        check(response, (200,), self._registry)
        body(response, limits.JSON_BODY_BYTES, self._registry)
