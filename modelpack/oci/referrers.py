"""Referrers (distribution-spec v1.1, "Listing Referrers"): the API, or the fallback tag."""

from typing import Final
from urllib.parse import urlencode

import msgspec

from modelpack.oci import manifests
from modelpack.oci.exchange import Exchange
from modelpack.oci.pages import pages
from modelpack.spec import media
from modelpack.spec.digest import Digest
from modelpack.spec.errors import LimitExceeded, NotFound, Rejected
from modelpack.spec.manifest import Descriptor, Index, Manifest, decode, encode

_MOST: Final = 10_000


class _Subject(msgspec.Struct):
    subject: Descriptor | None = None


def find(exchange: Exchange, digest: str, artifact_type: str) -> list[Descriptor]:
    """List manifests whose subject is `digest`; of one artifact type if it is given.

    Raises LimitExceeded above 10 000, BadManifest where the fallback tag names something else.
    """
    Digest.parse(digest)
    found = _from_api(exchange, digest, artifact_type)
    if found is None:
        found = _from_tag(exchange, digest)
    # Filtering is the registry's choice (OCI-Filters-Applied), so it is done here in any case.
    return [d for d in found if not artifact_type or d.artifact_type == artifact_type]


def add_to_fallback(exchange: Exchange, data: bytes, descriptor: Descriptor) -> None:
    """Name a manifest with a subject in the fallback tag, where the registry has no API.

    Two clients that do this for one subject at the same instant can lose one of the two: the
    specification has no way around that. Raises Rejected rather than replace what is no index,
    BadManifest.
    """
    manifest = decode(data, exchange.name)
    # An image index may have one too (image-spec v1.1).
    subject = msgspec.json.decode(data, type=_Subject).subject
    if subject is None:
        return
    present = _from_tag(exchange, subject.digest)
    if any(entry.digest == descriptor.digest for entry in present):
        return
    kind = manifest.artifact_type
    if isinstance(manifest, Manifest):
        kind = kind or manifest.config.media_type
    entry = msgspec.structs.replace(
        descriptor, artifact_type=kind, annotations=manifest.annotations
    )
    index = encode(Index(media_type=media.OCI_INDEX, manifests=(*present, entry)))
    tag = _tag(subject.digest)
    exchange.retry(lambda: manifests.put(exchange, index, media.OCI_INDEX, tag))


def _from_api(exchange: Exchange, digest: str, artifact_type: str) -> list[Descriptor] | None:
    """Ask the API; None where there is none."""
    query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
    found: list[Descriptor] = []
    try:
        for page in pages(exchange, f"referrers/{digest}{query}", Index, media.OCI_INDEX):
            found += page.manifests
            if len(found) > _MOST:
                raise LimitExceeded(f"{exchange.name}@{digest}: more than {_MOST} referrers")
    except (NotFound, Rejected):
        # Registries without the API answer 404, some 400 or 405, or a page for people.
        if found:
            raise
        return None
    return found


def _from_tag(exchange: Exchange, digest: str) -> list[Descriptor]:
    tag = _tag(digest)
    try:
        _, data = exchange.retry(lambda: manifests.get(exchange, tag))
    except NotFound:
        return []
    index = decode(data, f"{exchange.name}:{tag}")
    if not isinstance(index, Index):
        raise Rejected(
            f"{exchange.name}:{tag}: is not the list of referrers that the tag is reserved for",
            hint=f"remove it: modelpack rm {exchange.name}:{tag}",
        )
    return list(index.manifests)


def _tag(digest: str) -> str:
    return digest.replace(":", "-")
