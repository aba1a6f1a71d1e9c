"""What modelpack needs of a registry: the Protocol that every backend fulfils.

Three implementations pass one contract suite (tests/contract): `oci.remote` over HTTP,
`oci.layout` on disk, `oci.memory`.
"""

from typing import Protocol

from modelpack.spec.manifest import Descriptor
from modelpack.spec.progress import Progress
from modelpack.spec.source import BlobSource, Content


class Repository(BlobSource, Protocol):
    """One repository of a registry, or one OCI image layout. Called from many threads at once.

    All methods raise the RegistryError family (DiskError for a layout). Nothing waits for ever.
    """

    def manifest(self, target: str) -> tuple[Descriptor, bytes]:
        """Fetch the manifest that a tag or digest names.

        The digest in the descriptor was computed here over the bytes; asked by digest, it is equal
        or IntegrityError is raised. At most limits.MANIFEST_BYTES are read. Raises NotFound.
        """

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        """Store a manifest under its digest, and under `tag` if one is given.

        Returns only after the registry confirmed the digest. Everything it names must be there.
        """

    def delete_manifest(self, target: str) -> None:
        """Remove a manifest by digest (all its tags go too) or a tag. Raises NotFound."""

    def tags(self) -> list[str]:
        """List all tags, sorted; an unknown repository raises NotFound."""

    def stat_blob(self, digest: str) -> int | None:
        """Return the size of a blob, or None if it is not here."""

    def put_blob(self, content: Content, progress: Progress) -> None:
        """Store a blob; returns only when the registry has accepted its digest.

        `progress` hears the bytes that travelled. Interrupted at any instant, the next call
        continues from the offset that the registry reports. Raises IntegrityError if the bytes do
        not have the digest.
        """

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:
        """Link a blob from a neighbour repository of the same registry; False if it cannot be."""

    def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """List manifests whose subject is `digest`, from the API or the fallback tag."""

    def close(self) -> None:
        """Drop connections."""
