"""index.json of a layout as a value (OCI image-spec v1.1, image-layout.md, "index.json file").

Other tools write this file too: every field that is not ours stays as it was.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import msgspec

from modelpack.oci.layout_disk import DamagedLayout
from modelpack.spec import limits, media
from modelpack.spec.errors import LimitExceeded, Rejected
from modelpack.spec.manifest import Descriptor
from modelpack.spec.reference import TAG

REF_NAME: Final = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class Entry:
    """One descriptor; `raw` is all that was written of it."""

    descriptor: Descriptor
    raw: dict[str, Any]

    @property
    def tag(self) -> str:
        """The tag; empty for none, and for a name that could not be asked for as a tag."""
        name = (self.descriptor.annotations or {}).get(REF_NAME, "")
        return name if TAG.fullmatch(name) else ""

    @property
    def named(self) -> bool:
        """Whether there is a name, a tag or not (podman writes whole references)."""
        return REF_NAME in (self.descriptor.annotations or {})

    def untagged(self) -> "Entry":
        """Return the same without its name."""
        annotations = {k: v for k, v in (self.raw["annotations"] or {}).items() if k != REF_NAME}
        raw = {key: value for key, value in self.raw.items() if key != "annotations"}
        return _entry(raw | ({"annotations": annotations} if annotations else {}))


@dataclass(frozen=True, slots=True)
class LayoutIndex:
    """The descriptors in order, and the other fields of the document."""

    document: dict[str, Any]
    entries: tuple[Entry, ...] = ()

    @classmethod
    def empty(cls) -> Self:
        """Return the index of a new layout."""
        return cls({"schemaVersion": 2, "mediaType": media.OCI_INDEX})

    @classmethod
    def parse(cls, data: bytes, what: str) -> Self:
        """Read the document; `what` names it. Raises DamagedLayout."""
        try:
            document = msgspec.json.decode(data, type=dict[str, Any])
            manifests = msgspec.convert(document.pop("manifests", None), list[dict[str, Any]])
            entries = tuple(_entry(raw) for raw in manifests)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DamagedLayout(f"{what}: not the index of a layout: {error}") from error
        if document.get("schemaVersion") != 2:
            raise DamagedLayout(f"{what}: expected schemaVersion 2")
        return cls(document, entries)

    def encode(self) -> bytes:
        """Return the document; raises LimitExceeded where nobody would read it again."""
        data = msgspec.json.encode(
            {**self.document, "manifests": [entry.raw for entry in self.entries]}
        )
        if len(data) > limits.JSON_BODY_BYTES:
            raise LimitExceeded(
                f"index.json would have {len(data)} bytes; at most {limits.JSON_BODY_BYTES}",
                hint="remove manifests that are not needed, or begin another layout",
            )
        return data

    def tags(self) -> list[str]:
        """Return all tags, sorted."""
        return sorted({entry.tag for entry in self.entries if entry.tag})

    def tagged(self, tag: str) -> Descriptor | None:
        """Return what a tag names. Raises Rejected if that is ambiguous."""
        found = {e.descriptor.digest: e.descriptor for e in self.entries if e.tag == tag}
        if len(found) > 1:
            raise Rejected(
                f"{tag!r} names {len(found)} manifests: {', '.join(sorted(found))}",
                hint="ask for one of them by its digest",
            )
        return next(iter(found.values()), None)

    def listed(self, digest: str) -> Descriptor | None:
        """Return the descriptor of a digest."""
        return next((e.descriptor for e in self.entries if e.descriptor.digest == digest), None)

    def put(self, descriptor: Descriptor, tag: str) -> Self:
        """List a manifest; what had the tag before stays listed without it."""
        if not tag:
            if self.listed(descriptor.digest):
                return self
            return self._with([*self.entries, _entry(_raw(descriptor))])
        kept = self._without_tag(tag, descriptor.digest)
        if any(e.tag == tag for e in kept):
            return self._with(kept)
        # A name makes the nameless entry of the same manifest superfluous; it keeps its fields.
        nameless = next(
            (e for e in kept if e.descriptor.digest == descriptor.digest and not e.named), None
        )
        raw = nameless.raw if nameless else _raw(descriptor)
        annotations = {**(raw.get("annotations") or {}), REF_NAME: tag}
        kept = [e for e in kept if e is not nameless]
        return self._with([*kept, _entry({**raw, "annotations": annotations})])

    def remove_tag(self, tag: str) -> Self:
        """Remove the entries of a tag; a manifest that had no other entry is listed no more."""
        return self._with(e for e in self.entries if e.tag != tag)

    def remove(self, digest: str) -> Self:
        """Remove all entries of a manifest."""
        return self._with(e for e in self.entries if e.descriptor.digest != digest)

    def _without_tag(self, tag: str, holder: str) -> list[Entry]:
        """Take the tag from all manifests except `holder`, each of which stays listed once."""
        result: list[Entry] = []
        others = {e.descriptor.digest for e in self.entries if e.tag != tag}
        for entry in self.entries:
            if entry.tag != tag or entry.descriptor.digest == holder:
                result.append(entry)
            elif entry.descriptor.digest not in others:
                others.add(entry.descriptor.digest)
                result.append(entry.untagged())
        return result

    def _with(self, entries: Iterable[Entry]) -> Self:
        return replace(self, entries=tuple(entries))


def _entry(raw: dict[str, Any]) -> Entry:
    return Entry(msgspec.convert(raw, Descriptor), raw)


def _raw(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size
    }  # fmt: skip
