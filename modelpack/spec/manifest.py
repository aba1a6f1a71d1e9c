"""Descriptors and manifests (OCI image-spec v1.1, descriptor.md and manifest.md).

Digests are over received bytes: a manifest is decoded for reading and never encoded again to be
hashed. What we write ourselves is encoded once, with fixed key order and sorted annotations.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from modelpack.spec import limits, media
from modelpack.spec.digest import Digest
from modelpack.spec.errors import BadManifest, BadReference, LimitExceeded

_ENCODER: Final = msgspec.json.Encoder(order=None)


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """`platform` of an index entry."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Names one blob or manifest: media type, digest (text), size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    artifact_type: str = ""
    platform: Platform | None = None

    @property
    def checked_digest(self) -> Digest:
        """The digest as a value."""
        return Digest.parse(self.digest)


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """One image manifest: config and layers. Field order is the order of our encoding."""

    schema_version: int = msgspec.field(default_factory=lambda: 2)  # a factory: never omitted
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor
    layers: tuple[Descriptor, ...] = msgspec.field(default_factory=tuple)
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """An image index (or Docker manifest list)."""

    schema_version: int = msgspec.field(default_factory=lambda: 2)
    media_type: str = ""
    artifact_type: str = ""
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] | None = None


def _check(descriptor: Descriptor, what: str) -> None:
    if not 0 <= descriptor.size <= limits.BLOB_BYTES:
        raise BadManifest(f"{what}: {descriptor.digest[:80]} of {descriptor.size:.3g} bytes")
    try:
        Digest.parse(descriptor.digest)
    except BadReference as error:
        raise BadManifest(f"{what}: {error}") from None


def decode(data: bytes, what: str) -> Manifest | Index:
    """Read a manifest or index; `what` names it in errors.

    Raises LimitExceeded above limits.MANIFEST_BYTES, BadManifest for anything that is neither.
    """
    if len(data) > limits.MANIFEST_BYTES:
        raise LimitExceeded(
            f"{what}: manifest of {len(data)} bytes; at most {limits.MANIFEST_BYTES}"
        )
    try:
        shape = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if "manifests" in shape and "layers" in shape:
            raise BadManifest(f"{what}: has both 'manifests' and 'layers'")
        if "manifests" in shape:
            index = msgspec.json.decode(data, type=Index)
            _check_all(index.manifests, limits.MANIFESTS, "manifests", what)
            return index
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadManifest(f"{what}: not an image manifest or index: {error}") from None
    except RecursionError:
        raise BadManifest(f"{what}: nested too deeply") from None
    _check(manifest.config, what)
    _check_all(manifest.layers, limits.LAYERS_READ, "layers", what)
    total = sum(layer.size for layer in manifest.layers)
    if total > limits.ARTIFACT_BYTES:
        raise LimitExceeded(f"{what}: {total} bytes in all; at most {limits.ARTIFACT_BYTES}")
    return manifest


def _check_all(descriptors: Sequence[Descriptor], most: int, noun: str, what: str) -> None:
    if len(descriptors) > most:
        raise LimitExceeded(f"{what}: {len(descriptors)} {noun}; at most {most}")
    for descriptor in descriptors:
        _check(descriptor, what)


def encode(value: Manifest | Index) -> bytes:
    """Encode for publishing: compact, keys in field order, annotation keys sorted."""
    return _ENCODER.encode(_sorted(msgspec.to_builtins(value)))


def _sorted(value: object) -> object:
    """Sort annotation objects, keep everything else in the order of its fields."""
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    if isinstance(value, dict):
        return {
            key: dict(sorted(item.items()))
            if key == "annotations" and isinstance(item, dict)
            else _sorted(item)
            for key, item in value.items()
        }
    return value


def describe(media_type: str, data: bytes) -> Descriptor:
    """Describe bytes at hand."""
    return Descriptor(media_type=media_type, digest=str(Digest.of(data)), size=len(data))


EMPTY_CONFIG: Final = b"{}"  # image-spec, "Guidance for an Empty Descriptor"


def is_index(media_type: str) -> bool:
    """Whether the media type is that of an index or manifest list."""
    return media_type in media.INDEXES
