"""What a registry checks of a manifest before it takes it, for those that are registries here."""

from dataclasses import dataclass

from modelpack.spec.errors import ArtifactError, Rejected
from modelpack.spec.manifest import Descriptor, Index, decode, describe
from modelpack.spec.reference import TAG


@dataclass(frozen=True, slots=True)
class CheckedManifest:
    """A manifest that may be stored once everything it names is there."""

    where: str
    descriptor: Descriptor
    blobs: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]

    def lacks(self, part: Descriptor) -> Rejected:
        """Return the error for a blob or manifest that is not there."""
        return Rejected(
            f"{self.where}: the manifest {self.descriptor.digest} names {part.digest}, "
            "which is not here",
            hint="push again: what is missing is sent first",
        )


def check_manifest(data: bytes, media_type: str, tag: str, where: str) -> CheckedManifest:
    """Check form, media type and tag; an empty tag is none. `where` names the repository.

    A subject need not be there (distribution-spec, "Pushing Manifests with Subject"). Raises
    Rejected.
    """
    if tag and not TAG.fullmatch(tag):
        raise Rejected(f"{where}: {tag[:140]!r} is not a tag")
    try:
        manifest = decode(data, where)
    except ArtifactError as error:
        raise Rejected(str(error)) from error
    own = manifest.media_type
    if own and own != media_type:
        raise Rejected(f"{where}: a manifest of type {own[:100]!r}, sent as {media_type!r}")
    descriptor = describe(media_type, data)
    if isinstance(manifest, Index):
        return CheckedManifest(where, descriptor, (), manifest.manifests)
    return CheckedManifest(where, descriptor, (manifest.config, *manifest.layers), ())
