"""From digests to the artifact: chunk index, config and manifest, the same bytes everywhere."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Final

import msgspec

from modelpack.pack.digest import LayerDigests, zstd_version
from modelpack.pack.plan import PackPlan
from modelpack.spec import media, names
from modelpack.spec.digest import Digest
from modelpack.spec.errors import InputError
from modelpack.spec.index import ChunkIndex, Coding, FileEntry, Header, LayerEntry
from modelpack.spec.manifest import Descriptor, Manifest, describe, encode
from modelpack.spec.source import Bytes
from modelpack.spec.tarrule import literals

FORMAT_VERSION: Final = "1"
# An image config must name a platform. The artifact has none: every reader that looks at a single
# manifest ignores the name or only logs the difference.
_ARCHITECTURE: Final = "amd64"
_OS: Final = "linux"


class _Rootfs(msgspec.Struct, frozen=True):
    type: str
    diff_ids: tuple[str, ...]


class _ImageConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    architecture: str
    os: str
    config: dict[str, str]
    rootfs: _Rootfs
    created: str = ""


@dataclass(frozen=True, slots=True)
class Built:
    """An artifact without its weights: what is uploaded after the layers, in this order."""

    manifest: bytes
    layers: tuple[Descriptor, ...]  # of the files, the index not among them
    companions: tuple[Bytes, ...]  # index layer and config
    index: ChunkIndex

    @property
    def digest(self) -> Digest:
        """The digest of the manifest."""
        return Digest.of(self.manifest)


def build(
    plan: PackPlan,
    digests: Sequence[LayerDigests],
    coding: Coding,
    annotations: Mapping[str, str],
) -> Built:
    """Build our form: a plain image manifest whose last layer is the chunk index."""
    index = build_index(plan, digests, coding)
    layers = layer_descriptors(digests, media.LAYER_TAR_ZSTD if coding.codec else media.LAYER_TAR)
    index_bytes = index.encode()
    before, after = literals([(names.INDEX_PATH, len(index_bytes))])
    index_layer = before + index_bytes + after
    index_blob = msgspec.structs.replace(
        describe(media.LAYER_TAR, index_layer), annotations={names.ROLE: names.ROLE_INDEX}
    )
    config = msgspec.json.encode(
        _ImageConfig(
            architecture=_ARCHITECTURE,
            os=_OS,
            config={},
            rootfs=_Rootfs("layers", (*(d.diff_id for d in digests), index_blob.digest)),
            created=source_date(),
        )
    )
    config_blob = describe(media.OCI_CONFIG, config)
    manifest = Manifest(
        media_type=media.OCI_MANIFEST,
        config=config_blob,
        layers=(*layers, index_blob),
        annotations={**facts_annotations(plan), **_compression(coding), **annotations},
    )
    return Built(
        encode(manifest),
        layers,
        (Bytes(index_blob, index_layer), Bytes(config_blob, config)),
        index,
    )


def build_index(plan: PackPlan, digests: Sequence[LayerDigests], coding: Coding) -> ChunkIndex:
    """Put together the chunk index of all layers."""
    layers = tuple(
        LayerEntry(
            digest=result.digest,
            size=result.size,
            files=tuple(
                FileEntry(path, file.size, len(lengths))
                for path, file, lengths in zip(layer.paths, layer.files, layer.cuts, strict=True)
            ),
            form=layer.form,
            diff_id=result.diff_id if coding.codec else "",
            literals=result.literals,
        )
        for layer, result in zip(plan.layers, digests, strict=True)
    )
    lengths = list(chain.from_iterable(chain.from_iterable(layer.cuts) for layer in plan.layers))
    stored = list(chain.from_iterable(r.stored for r in digests)) if coding.codec else lengths
    table = b"".join(chain.from_iterable(result.chunks for result in digests))
    header = Header(coding.algorithm, coding.chunk_size, layers, coding.codec)
    return ChunkIndex(header, lengths, stored, memoryview(table))


def layer_descriptors(digests: Sequence[LayerDigests], media_type: str) -> tuple[Descriptor, ...]:
    """Describe the layers. No title: `oras pull` would give a tar the name of the file in it."""
    return tuple(Descriptor(media_type, result.digest, result.size) for result in digests)


def facts_annotations(plan: PackPlan) -> dict[str, str]:
    """Say what placement and people want to know, without a download."""
    facts = plan.facts
    known = {
        names.FORMAT: FORMAT_VERSION,
        names.TOTAL_BYTES: str(plan.total_bytes),
        names.FILES: str(len(plan.files)),
        names.ARCHITECTURE: facts.architecture,
        names.QUANTIZATION: facts.quantization,
        names.PARAMETERS: _number(facts.parameters or None),
        names.HIDDEN_LAYERS: _number(facts.hidden_layers),
        names.KV_BYTES_PER_TOKEN: _number(facts.kv_bytes_per_token),
        names.CONTEXT_LENGTH: _number(facts.context_length),
    }
    if facts.tensor_bytes:
        sizes = dict(sorted(facts.tensor_bytes.items()))
        known[names.TENSOR_BYTES] = msgspec.json.encode(sizes).decode()
    return {key: value for key, value in known.items() if value}


def source_date() -> str:
    """Return SOURCE_DATE_EPOCH as RFC 3339, or nothing: the clock is not part of a model.

    https://reproducible-builds.org/specs/source-date-epoch/
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return ""
    try:
        # Digits only: no sign, no point, no exponent.
        seconds = int(text if text.isdigit() else "no")
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise InputError(f"SOURCE_DATE_EPOCH={text[:40]!r} is not a number of seconds") from None


def _compression(coding: Coding) -> dict[str, str]:
    # Compressed bytes depend on the library, so the digest does too: name it.
    return {names.COMPRESSION: f"zstd {zstd_version()}"} if coding.codec else {}


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
