"""Referrers (distribution-spec v1.1, "Listing Referrers"): the API, or the fallback tag."""

from typing import TYPE_CHECKING, Final

import msgspec

from modelpack.oci.answers import check, json_body
from modelpack.spec import limits, media
from modelpack.spec.errors import ArtifactError, NotFound
from modelpack.spec.manifest import Descriptor, Index, Manifest, decode, encode

if TYPE_CHECKING:
    from modelpack.oci.remote import RemoteRepository

_MOST: Final = 1000


def find(repository: "RemoteRepository", digest: str, artifact_type: str) -> list[Descriptor]:
    """List manifests whose subject is `digest`; of one artifact type if it is given."""
    found = repository.retry(lambda: _from_api(repository, digest))
    if found is None:
        found = _from_tag(repository, digest)
    return [d for d in found if not artifact_type or d.artifact_type == artifact_type][:_MOST]


def add_to_fallback(repository: "RemoteRepository", data: bytes, descriptor: Descriptor) -> None:
    """Name a manifest with a subject in the fallback tag, where the registry has no API."""
    manifest = decode(data, repository.name)
    if not isinstance(manifest, Manifest) or manifest.subject is None:
        return
    subject = manifest.subject.digest
    present = _from_tag(repository, subject)
    if any(entry.digest == descriptor.digest for entry in present):
        return
    entry = msgspec.structs.replace(
        descriptor,
        artifact_type=manifest.artifact_type or manifest.config.media_type,
        annotations=manifest.annotations,
    )
    index = Index(media_type=media.OCI_INDEX, manifests=(*present, entry))
    repository.put_manifest(encode(index), media.OCI_INDEX, _tag(subject))


def _from_api(repository: "RemoteRepository", digest: str) -> list[Descriptor] | None:
    response = repository.follow("GET", f"referrers/{digest}", {"Accept": media.OCI_INDEX})
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    # Registries without the API answer 404, some 400 or an HTML page of their own.
    if response.status in (400, 404, 405) or (response.status == 200 and kind != media.OCI_INDEX):
        response.close()
        return None
    check(response, (200,), repository.name)
    index = json_body(response, Index, limits.JSON_BODY_BYTES, repository.name)
    return list(index.manifests)


def _from_tag(repository: "RemoteRepository", digest: str) -> list[Descriptor]:
    try:
        _, data = repository.manifest(_tag(digest))
        index = decode(data, repository.name)
    except (NotFound, ArtifactError):
        return []
    return list(index.manifests) if isinstance(index, Index) else []


def _tag(digest: str) -> str:
    return digest.replace(":", "-")
