"""What the manifests of a layout reach: nested indexes, referrers, and the blobs to keep."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from modelpack.oci.layout_disk import DamagedLayout
from modelpack.spec import limits
from modelpack.spec.manifest import Descriptor

Read = Callable[[Descriptor], bytes | None]
_SUBJECT: Final = "subject"


class _Shape(msgspec.Struct, rename="camel"):
    """The fields that any manifest or index may have and that lead somewhere."""

    artifact_type: str = ""
    config: Descriptor | None = None
    manifests: list[Descriptor] | None = None
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One manifest or index that was read. `parent` is the index it was found in, if any."""

    descriptor: Descriptor
    data: bytes
    shape: _Shape
    parent: str = ""

    def refers_to(self, digest: str) -> bool:
        """Whether its subject is `digest`."""
        return self.shape.subject is not None and self.shape.subject.digest == digest

    def referrer(self) -> Descriptor:
        """Describe it as distribution-spec, "Listing Referrers", wants it."""
        config = self.shape.config
        return Descriptor(
            self.descriptor.media_type,
            self.descriptor.digest,
            self.descriptor.size,
            annotations=self.shape.annotations,
            artifact_type=self.shape.artifact_type or (config.media_type if config else ""),
        )


def walk(roots: Iterable[Descriptor], read: Read) -> Iterator[Node]:
    """Yield each manifest once, nested ones after the index that names them.

    What is not there, or is too large or no JSON to be a manifest, is passed over: a layout may be
    incomplete and may list anything. Raises DamagedLayout for what should be a manifest and cannot
    be read.
    """
    seen: set[str] = set()
    waiting = [(root, "") for root in reversed(list(roots))]
    while waiting:
        descriptor, parent = waiting.pop()
        if descriptor.digest in seen or not _like_manifest(descriptor):
            continue
        seen.add(descriptor.digest)
        data = read(descriptor)
        if data is None:
            continue
        node = Node(descriptor, data, _shape(descriptor, data), parent)
        yield node
        for child in reversed(node.shape.manifests or ()):
            waiting.append((child, descriptor.digest))


def reached(roots: Iterable[Descriptor], read: Read) -> set[str]:
    """Return the digests of everything that the manifests name, themselves included.

    A subject is not kept by its referrers: a signature must not keep the weights of a model that
    was removed. Raises DamagedLayout.
    """
    roots = list(roots)
    kept = {root.digest for root in roots}
    for node in walk(roots, read):
        kept.add(node.descriptor.digest)
        kept.update(_named(msgspec.json.decode(node.data)))
    return kept


def _named(value: Any) -> Iterator[str]:
    """Yield every digest, whatever the field it is in: manifests of the future name blobs too."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            digest = item.get("digest")
            if isinstance(digest, str):
                yield digest
            waiting += [inner for key, inner in item.items() if key != _SUBJECT]


def _like_manifest(descriptor: Descriptor) -> bool:
    return descriptor.media_type.endswith("json") and descriptor.size <= limits.MANIFEST_BYTES


def _shape(descriptor: Descriptor, data: bytes) -> _Shape:
    try:
        return msgspec.json.decode(data, type=_Shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedLayout(f"manifest {descriptor.digest}: {error}") from error
