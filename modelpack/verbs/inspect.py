"""`modelpack inspect`: what an artifact or a directory holds, without downloading weights."""

from collections import Counter
from pathlib import Path

import msgspec

from modelpack.checkout.artifact import Artifact, read_artifact
from modelpack.formats.facts import estimated_vram
from modelpack.pack.build import facts_annotations
from modelpack.pack.plan import PackPlan, make_plan
from modelpack.pack.walk import Directory
from modelpack.spec.kinds import layer_plan
from modelpack.spec.reference import Reference
from modelpack.spec.tensors import TensorFile
from modelpack.verbs.contents import Contents, artifact_contents, is_directory
from modelpack.verbs.session import Session


class TensorRow(msgspec.Struct, frozen=True):
    """One tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


class FileRow(msgspec.Struct, frozen=True):
    """One file; `tensors` only of weight files."""

    path: str
    bytes: int
    chunks: int
    format: str
    tensors: list[TensorRow]


class LayerRow(msgspec.Struct, frozen=True):
    """One layer."""

    digest: str
    bytes: int
    media_type: str


class Inspection(msgspec.Struct, frozen=True):
    """What was found. `digest`, `kind` and `layers` are empty for a directory."""

    reference: str
    digest: str
    kind: str
    bytes_total: int
    files: list[FileRow]
    layers: list[LayerRow]
    chunks: int
    chunk_digest: str
    dtypes: dict[str, int]  # bytes per dtype
    tensors: int
    parameters: int
    estimated_vram_bytes: int | None
    annotations: dict[str, str]


def inspect(text: str, session: Session, *, platform: str = "") -> Inspection:
    """Look at a reference or a directory."""
    if is_directory(text):
        return _directory(text, make_plan(Directory(Path(text))))
    reference = Reference.parse(text)
    with session.repository(reference) as repository:
        artifact = read_artifact(repository, reference.target, platform)
        name = str(reference.at(artifact.digest))
        if artifact.index is None:
            return _layers_only(name, artifact)
        return _artifact(name, artifact, artifact_contents(artifact, repository, name))


def _artifact(name: str, artifact: Artifact, found: Contents) -> Inspection:
    files = [
        _file(view.path, view.size, len(view.table.lengths), view.header)
        for view in found.files.values()
    ]
    return Inspection(
        reference=name,
        digest=str(artifact.digest),
        kind=artifact.kind.value,
        bytes_total=sum(row.bytes for row in files),
        files=files,
        layers=_layer_rows(artifact),
        chunks=sum(row.chunks for row in files),
        chunk_digest=found.coding.algorithm,
        dtypes=_dtypes(files),
        tensors=sum(len(row.tensors) for row in files),
        parameters=found.facts.parameters,
        estimated_vram_bytes=_vram(files, found),
        annotations=artifact.annotations,
    )


def _directory(text: str, plan: PackPlan) -> Inspection:
    rows = [
        _file(path, file.size, len(lengths), plan.headers.get(file.path))
        for layer in plan.layers
        for path, file, lengths in zip(layer.paths, layer.files, layer.cuts, strict=True)
    ]
    weights = sum(tensor.bytes for row in rows for tensor in row.tensors)
    return Inspection(
        reference=text,
        digest="",
        kind="directory",
        bytes_total=plan.total_bytes,
        files=rows,
        layers=[],
        chunks=sum(row.chunks for row in rows),
        chunk_digest="",
        dtypes=_dtypes(rows),
        tensors=sum(len(row.tensors) for row in rows),
        parameters=plan.facts.parameters,
        estimated_vram_bytes=estimated_vram(plan.facts, weights) if weights else None,
        annotations=facts_annotations(plan),
    )


def _layers_only(name: str, artifact: Artifact) -> Inspection:
    plans = layer_plan(artifact.manifest)
    files = [_file(p.path, p.descriptor.size, 0, None) for p in plans if p.form == "raw"]
    return Inspection(
        reference=name,
        digest=str(artifact.digest),
        kind=artifact.kind.value,
        bytes_total=sum(layer.size for layer in artifact.layers),
        files=files,
        layers=_layer_rows(artifact),
        chunks=0,
        chunk_digest="",
        dtypes={},
        tensors=0,
        parameters=0,
        estimated_vram_bytes=None,
        annotations=artifact.annotations,
    )


def _file(path: str, size: int, chunks: int, header: TensorFile | None) -> FileRow:
    tensors = [
        TensorRow(tensor.name, tensor.dtype, tensor.shape, tensor.size)
        for tensor in (header.tensors if header else ())
    ]
    return FileRow(path, size, chunks, header.format if header else "", tensors)


def _dtypes(files: list[FileRow]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for row in files:
        for tensor in row.tensors:
            totals[tensor.dtype] += tensor.bytes
    return dict(sorted(totals.items()))


def _vram(files: list[FileRow], found: Contents) -> int | None:
    weights = sum(tensor.bytes for row in files for tensor in row.tensors)
    return estimated_vram(found.facts, weights) if weights else None


def _layer_rows(artifact: Artifact) -> list[LayerRow]:
    return [LayerRow(d.digest, d.size, d.media_type) for d in artifact.manifest.layers]
