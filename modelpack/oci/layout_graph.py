"""What the manifests of a layout reach: nested indexes, referrers, and the blobs to keep."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from modelpack.oci.layout_disk import DamagedLayout
from modelpack.spec import limits, media
from modelpack.spec.errors import ArtifactError, RegistryError
from modelpack.spec.manifest import Descriptor


class _Shape(msgspec.Struct, rename="camel"):
    """The fields that any manifest or index may have and that lead to other manifests."""

    artifact_type: str = ""
    config: Descriptor | None = None
    manifests: list[Descriptor] | None = None
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One manifest or index that was read; `document` is all of it."""

    descriptor: Descriptor
    document: Any
    shape: _Shape

    @property
    def children(self) -> list[Descriptor]:
        """The manifests that an index names."""
        return self.shape.manifests or []

    def refers_to(self, digest: str) -> bool:
        """Whether its subject is `digest`."""
        return self.shape.subject is not None and self.shape.subject.digest == digest

    def as_referrer(self) -> Descriptor:
        """Describe it as distribution-spec, "Listing Referrers", wants it."""
        config = self.shape.config
        return Descriptor(
            self.descriptor.media_type,
            self.descriptor.digest,
            self.descriptor.size,
            annotations=self.shape.annotations,
            artifact_type=self.shape.artifact_type or (config.media_type if config else ""),
        )


Look = Callable[[Descriptor], Node | None]


def strict(read: Callable[[Descriptor], bytes | None]) -> Look:
    """Look at manifests and raise DamagedLayout for what should be one and is none.

    Layouts may be incomplete and may list anything (image-layout.md): there is nothing to see of
    what is not there, nor of unknown media types that are no JSON objects.
    """

    def look(descriptor: Descriptor) -> Node | None:
        kind, size = descriptor.media_type, descriptor.size
        known = kind in media.MANIFESTS
        if not known and not (kind.endswith("json") and size <= limits.MANIFEST_BYTES):
            return None
        data = read(descriptor)
        if data is None:
            return None
        try:
            return Node(
                descriptor, msgspec.json.decode(data), msgspec.json.decode(data, type=_Shape)
            )
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if not known:
                return None
            raise DamagedLayout(f"manifest {descriptor.digest}: {error}") from error

    return look


def lenient(look: Look) -> Look:
    """See nothing of damaged manifests: one of them must not hide the others."""

    def wrapped(descriptor: Descriptor) -> Node | None:
        try:
            return look(descriptor)
        except (RegistryError, ArtifactError):
            return None

    return wrapped


def walk(roots: Iterable[Descriptor], look: Look) -> Iterator[Node]:
    """Yield each manifest once, nested ones after the index that names them."""
    seen: set[str] = set()
    waiting = list(roots)[::-1]
    while waiting:
        descriptor = waiting.pop()
        if descriptor.digest in seen:
            continue
        seen.add(descriptor.digest)
        node = look(descriptor)
        if node is not None:
            yield node
            waiting += node.children[::-1]


def parent_of(digest: str, nodes: Iterable[Node]) -> tuple[Node, Descriptor] | None:
    """Return the first index that names `digest`, and how it describes it."""
    for node in nodes:
        for child in node.children:
            if child.digest == digest:
                return node, child
    return None


def reached(roots: Iterable[Descriptor], look: Look) -> set[str]:
    """Return the digests of everything that the manifests name, themselves included.

    A subject is not kept by its referrers: a signature must not keep the weights of a model that
    was removed. Raises what `look` raises.
    """
    roots = list(roots)
    kept = {root.digest for root in roots}
    for node in walk(roots, look):
        kept.update(_named(node.document))
    return kept


def _named(document: object) -> Iterator[str]:
    """Yield every digest, whatever field it is in: manifests of the future name blobs too."""
    waiting = [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            digest = item.get("digest")
            if isinstance(digest, str):
                yield digest
            waiting += [inner for key, inner in item.items() if key != "subject"]
