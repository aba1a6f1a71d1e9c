"""`modelpack ls` and `modelpack rm`: tags of a repository."""

import msgspec

from modelpack.spec import names
from modelpack.spec.digest import Digest
from modelpack.spec.errors import ArtifactError, InputError, ModelpackError
from modelpack.spec.manifest import Index, decode
from modelpack.spec.reference import Reference
from modelpack.transfer.crew import work
from modelpack.verbs.session import Session


class TagRow(msgspec.Struct, frozen=True):
    """One tag. `bytes` are those of all layers, or None where the manifest cannot be read."""

    tag: str
    digest: str
    bytes: int | None
    architecture: str
    parameters: str


class Removal(msgspec.Struct, frozen=True):
    """What was removed."""

    reference: str
    digest: str


def list_tags(reference: Reference, session: Session) -> list[TagRow]:
    """List the tags of a repository or layout, with what each of them names."""
    if reference.tag or reference.digest:
        raise InputError(f"{reference}: ls lists a repository; leave out the tag")
    rows: dict[str, TagRow] = {}
    with session.repository(reference) as repository:
        tags = repository.tags()

        def look(tag: str) -> None:
            try:
                descriptor, data = repository.manifest(tag)
            except ModelpackError:
                rows[tag] = TagRow(tag, "", None, "", "")  # removed meanwhile, or damaged
                return
            rows[tag] = _row(tag, descriptor.digest, data)

        work(tags, look, workers=session.jobs)
    return [rows[tag] for tag in tags]


def remove(reference: Reference, session: Session) -> Removal:
    """Remove a tag, or with a digest the manifest and all its tags.

    A registry that cannot delete tags deletes the manifest that the tag names.
    """
    if not reference.tag and not reference.digest:
        raise InputError(f"{reference}: name a tag or a digest to remove, nothing is implied here")
    with session.repository(reference) as repository:
        descriptor, _ = repository.manifest(reference.target)
        repository.delete_manifest(reference.target)
    return Removal(str(reference), str(Digest.parse(descriptor.digest)))


def _row(tag: str, digest: str, data: bytes) -> TagRow:
    try:
        manifest = decode(data, tag)
    except ArtifactError:
        return TagRow(tag, digest, None, "", "")
    notes = manifest.annotations or {}
    parts = manifest.manifests if isinstance(manifest, Index) else manifest.layers
    return TagRow(
        tag, digest, sum(part.size for part in parts),
        notes.get(names.ARCHITECTURE, ""), notes.get(names.PARAMETERS, ""),
    )  # fmt: skip
