"""The CNCF ModelPack form, v0.0.7, of the same files (https://github.com/modelpack/model-spec).

Raw layers, one file each; key order and annotation order are those of the Go structs, because
`modctl inspect` prints the digest of a manifest that it marshalled again. The chunk index cannot
be a layer here (readers refuse foreign layer types), so it rides beside, as an artifact whose
subject is the model.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from modelpack.pack.build import Built, build_index, facts_annotations, source_date
from modelpack.pack.digest import LayerDigests
from modelpack.pack.layers import is_weight
from modelpack.pack.origin import SourceFile
from modelpack.pack.plan import PackPlan
from modelpack.spec import media, names
from modelpack.spec.index import Coding
from modelpack.spec.manifest import (
    EMPTY_CONFIG,
    Descriptor,
    Manifest,
    describe,
    encode,
)
from modelpack.spec.source import Bytes

_PREFIX: Final = "application/vnd.cncf.model."
_FILEPATH: Final = "org.cncf.model.filepath"
_METADATA: Final = "org.cncf.model.file.metadata+json"
_TITLE: Final = "org.opencontainers.image.title"
_EPOCH: Final = "1970-01-01T00:00:00Z"

_DOCUMENTS: Final = (".md", ".txt", ".pdf", ".rst", "license", "notice", "readme")
_CODE: Final = (".py", ".ipynb", ".sh", ".cpp", ".cu", ".jinja")
_DATA: Final = (".parquet", ".csv", ".arrow", ".jsonl")
_WEIGHTS: Final = (
    ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".ckpt", ".h5", ".tflite", ".msgpack",
    ".npz", ".ot",
)  # fmt: skip
_PRECISIONS: Final = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3", "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8",
}  # fmt: skip


class _FileMetadata(msgspec.Struct, frozen=True):
    name: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: str
    typeflag: int


class _ModelDescriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    created_at: str = ""
    family: str = ""
    name: str = ""


class _ModelFS(msgspec.Struct, frozen=True, rename="camel"):
    type: str
    diff_ids: tuple[str, ...]


class _ModelDetails(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    architecture: str = ""
    format: str = ""
    param_size: str = ""
    precision: str = ""
    quantization: str = ""


class _ModelConfig(msgspec.Struct, frozen=True):
    descriptor: _ModelDescriptor
    modelfs: _ModelFS
    config: _ModelDetails


def build_modelpack(
    plan: PackPlan,
    digests: Sequence[LayerDigests],
    coding: Coding,
    annotations: Mapping[str, str],
    name: str,
) -> tuple[Built, bytes, tuple[Bytes, ...]]:
    """Build the ModelPack artifact; returns it, the index artifact's manifest and its blobs."""
    layers = tuple(
        _layer(file, path, result)
        for layer, result in zip(plan.layers, digests, strict=True)
        for file, path in zip(layer.files, layer.paths, strict=True)
    )
    config = msgspec.json.encode(_config(plan, digests, name))
    config_blob = describe(media.MODEL_CONFIG, config)
    manifest = encode(
        Manifest(
            media_type=media.OCI_MANIFEST,
            artifact_type=media.MODEL_MANIFEST,
            config=config_blob,
            layers=layers,
            annotations={**facts_annotations(plan), **annotations},
        )
    )
    index = build_index(plan, digests, coding)
    built = Built(manifest, layers, (Bytes(config_blob, config),), index)
    beside, blobs = _index_artifact(index.encode(), describe(media.OCI_MANIFEST, manifest))
    return built, beside, blobs


def layer_type(file: SourceFile) -> str:
    """Choose weight, weight.config, doc, code or dataset by the name, as modctl does."""
    name = file.path.lower().rpartition("/")[2]
    if name.endswith(_WEIGHTS):
        return "weight"
    for kind, endings in (("doc", _DOCUMENTS), ("code", _CODE), ("dataset", _DATA)):
        if name.endswith(endings):
            return kind
    return "weight" if is_weight(file) else "weight.config"


def _layer(file: SourceFile, path: str, result: LayerDigests) -> Descriptor:
    metadata = _FileMetadata(path.rpartition("/")[2], 0o644, 0, 0, file.size, _EPOCH, 0)
    return Descriptor(
        f"{_PREFIX}{layer_type(file)}.v1.raw",
        result.digest,
        result.size,
        annotations={
            _METADATA: msgspec.json.encode(metadata).decode(),
            _FILEPATH: path,
            _TITLE: path,
        },
    )


def _config(plan: PackPlan, digests: Sequence[LayerDigests], name: str) -> _ModelConfig:
    facts = plan.facts
    formats = sorted({header.format for header in plan.headers.values()})
    precisions = [_PRECISIONS[d] for d in sorted(facts.tensor_bytes) if d in _PRECISIONS]
    return _ModelConfig(
        descriptor=_ModelDescriptor(
            created_at=source_date(), family=str(plan.config.get("model_type", ""))[:100], name=name
        ),
        modelfs=_ModelFS("layers", tuple(result.diff_id for result in digests)),
        config=_ModelDetails(
            architecture="transformer" if facts.hidden_layers else "",
            format=",".join(formats),
            param_size=_param_size(facts.parameters),
            precision=",".join(precisions),
            quantization=facts.quantization,
        ),
    )


def _param_size(parameters: int) -> str:
    for unit, factor in (("t", 10**12), ("b", 10**9), ("m", 10**6)):
        if parameters >= factor:
            return f"{parameters / factor:.1f}".removesuffix(".0") + unit
    return ""


def _index_artifact(data: bytes, subject: Descriptor) -> tuple[bytes, tuple[Bytes, ...]]:
    blob = describe(names.INDEX_ARTIFACT_TYPE, data)
    config = describe(media.OCI_EMPTY, EMPTY_CONFIG)
    manifest = Manifest(
        media_type=media.OCI_MANIFEST,
        artifact_type=names.INDEX_ARTIFACT_TYPE,
        config=config,
        layers=(blob,),
        subject=subject,
    )
    return encode(manifest), (Bytes(blob, data), Bytes(config, EMPTY_CONFIG))
