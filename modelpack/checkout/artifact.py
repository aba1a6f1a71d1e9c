"""What a reference points at, read and checked: manifest, kind, chunk index."""

from dataclasses import dataclass

from modelpack.spec import limits, media, names
from modelpack.spec.digest import Digest
from modelpack.spec.errors import (
    ArtifactError,
    BadIndex,
    BadManifest,
    IntegrityError,
    NotFound,
    RegistryError,
)
from modelpack.spec.index import ChunkIndex, decode
from modelpack.spec.kinds import Kind, classify, layer_plan, pick
from modelpack.spec.manifest import Descriptor, Index, Manifest
from modelpack.spec.manifest import decode as decode_manifest
from modelpack.spec.registry import Repository
from modelpack.spec.source import BlobSource
from modelpack.spec.tarrule import BLOCK, END, header, padding
from modelpack.transfer.blob import read_blob


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest and what can be told from it. `index` is None where layers must come whole.

    `index_signed` says whether the index is covered by the manifest's digest; one that rides
    beside only says where to look, and whole layers are checked afterwards.
    """

    descriptor: Descriptor
    manifest: Manifest
    kind: Kind
    layers: tuple[Descriptor, ...]  # that hold files: the index is not among them
    index: ChunkIndex | None
    index_signed: bool = True
    data: bytes = b""  # the manifest as it came

    @property
    def digest(self) -> Digest:
        """The digest of the manifest."""
        return self.descriptor.checked_digest

    @property
    def annotations(self) -> dict[str, str]:
        """Annotations of the manifest."""
        return self.manifest.annotations or {}


def read_artifact(repository: Repository, target: str, platform: str = "") -> Artifact:
    """Resolve `target`; of an image index the entry for `platform` is read.

    Raises NotFound, BadManifest, Unsupported (an index without a fitting entry).
    """
    descriptor, data = repository.manifest(target)
    manifest = decode_manifest(data, f"{repository.name}:{target}")
    if isinstance(manifest, Index):
        entry = pick(manifest, platform or None)
        descriptor, data = repository.manifest(entry.digest)
        manifest = decode_manifest(data, f"{repository.name}@{entry.digest}")
        if isinstance(manifest, Index):
            raise BadManifest(f"{repository.name}@{entry.digest}: an index inside an index")
    layers = tuple(layer for layer in manifest.layers if not _is_index(layer))
    index = _inner_index(repository, manifest, layers)
    kind = classify(manifest)
    signed = index is not None
    if index is None and kind is Kind.MODELPACK:
        index = _index_beside(repository, descriptor, manifest, layers)
    return Artifact(descriptor, manifest, kind, layers, index, signed, data)


def _is_index(layer: Descriptor) -> bool:
    return (layer.annotations or {}).get(names.ROLE) == names.ROLE_INDEX


def _inner_index(
    source: BlobSource, manifest: Manifest, layers: tuple[Descriptor, ...]
) -> ChunkIndex | None:
    """Read the index layer, if it is as we wrote it and speaks of these very layers."""
    found = [layer for layer in manifest.layers if _is_index(layer)]
    # A copy that was recompressed on its way has other layers: they are pulled whole.
    if len(found) != 1 or found[0].media_type != media.LAYER_TAR:
        return None
    data = read_blob(source, found[0], limits.INDEX_BYTES)
    size = int(data[124:135], 8) if len(data) > BLOCK and data[124:135].isdigit() else -1
    payload = data[BLOCK : BLOCK + max(0, size)]
    if data != header(names.INDEX_PATH, len(payload)) + payload + padding(len(payload)) + END:
        raise BadIndex(f"layer {found[0].digest}: is marked as chunk index, but is not one")
    index = decode(payload)
    return index if _speaks_of(index, layers) else None


def _index_beside(
    repository: Repository,
    subject: Descriptor,
    subject_manifest: Manifest,
    layers: tuple[Descriptor, ...],
) -> ChunkIndex | None:
    """Read the index that refers to a ModelPack artifact; anything wrong with it is no loss."""
    try:
        for referrer in repository.referrers(subject.digest, names.INDEX_ARTIFACT_TYPE):
            _, data = repository.manifest(referrer.digest)
            manifest = decode_manifest(data, f"{repository.name}@{referrer.digest}")
            if isinstance(manifest, Manifest) and len(manifest.layers) == 1:
                index = decode(read_blob(repository, manifest.layers[0], limits.INDEX_BYTES))
                if _speaks_of(index, layers) and _names_as(index, subject_manifest):
                    return index
    except (ArtifactError, IntegrityError, NotFound, RegistryError):
        return None
    return None


def _names_as(index: ChunkIndex, manifest: Manifest) -> bool:
    """Whether an index that nothing vouches for names the files as the manifest does."""
    named = [(layer.form, [file.path for file in layer.files]) for layer in index.header.layers]
    said = [(plan.form, [plan.path]) for plan in layer_plan(manifest)]
    return not index.header.codec and named == said and all(form == "raw" for form, _ in named)


def _speaks_of(index: ChunkIndex, layers: tuple[Descriptor, ...]) -> bool:
    named = [(layer.digest, layer.size) for layer in index.header.layers]
    return named == [(layer.digest, layer.size) for layer in layers]
