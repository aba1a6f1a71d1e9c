"""What will be packed, known before a byte of weights is read."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from modelpack.chunks.cut import CHUNK_SIZE, cut
from modelpack.chunks.table import kind_of
from modelpack.formats.detect import read_header
from modelpack.formats.facts import Facts, model_facts, parse_config
from modelpack.formats.shards import check_numbering, check_shards
from modelpack.pack.layers import plan_layers
from modelpack.pack.origin import Origin, SourceFile
from modelpack.spec import limits
from modelpack.spec.errors import BadSource
from modelpack.spec.tarrule import literals
from modelpack.spec.tensors import TensorFile


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One layer: the bytes around the payloads, the files, and where each of them is cut.

    `form` is "tar" or "raw" (spec.index). `paths` are those in the artifact, with any prefix.
    """

    form: str
    files: tuple[SourceFile, ...]
    paths: tuple[str, ...]
    cuts: tuple["array[int]", ...]

    @property
    def literals(self) -> list[bytes]:
        """The bytes before each payload and after the last."""
        if self.form == "raw":
            return [b"", b""]
        return literals([(path, f.size) for path, f in zip(self.paths, self.files, strict=True)])

    @property
    def size(self) -> int:
        """Bytes of the layer before any compression."""
        return sum(len(part) for part in self.literals) + sum(file.size for file in self.files)

    @property
    def name(self) -> str:
        """For people: the file, or how many there are."""
        return self.paths[0] if len(self.paths) == 1 else f"{len(self.paths)} files"


@dataclass(frozen=True, slots=True)
class PackPlan:
    """All layers in order, and what the headers say about the model."""

    layers: tuple[PlannedLayer, ...]
    headers: Mapping[str, TensorFile]
    facts: Facts
    config: Mapping[str, object]

    @property
    def files(self) -> list[SourceFile]:
        """All files, in the order of the layers."""
        return [file for layer in self.layers for file in layer.files]

    @property
    def total_bytes(self) -> int:
        """Payload bytes of all files."""
        return sum(file.size for file in self.files)


def make_plan(
    origin: Origin, *, prefix: str = "", raw: bool = False, chunk_size: int = CHUNK_SIZE
) -> PackPlan:
    """List the files, read all headers, decide layers and cuts.

    `raw` gives every file a layer of its own without tar (ModelPack). Raises BadSource, BadHeader:
    whatever is wrong with a file is known before anything is published.
    """
    files = origin.files()
    headers = {}
    for file in files:
        if kind_of(file.path):
            with origin.open(file) as opened:
                header = read_header(opened, file.size, file.path)
            if header is not None:
                headers[file.path] = header
    config = _config(origin, files)
    groups = [(file,) for file in files] if raw else plan_layers(files)
    layers = tuple(
        PlannedLayer(
            form="raw" if raw else "tar",
            files=tuple(group),
            paths=tuple(f"{prefix}{file.path}" for file in group),
            cuts=tuple(cut(f.size, headers.get(f.path), chunk_size) for f in group),
        )
        for group in groups
    )
    return PackPlan(layers, headers, model_facts(headers, config), config)


def check_complete(origin: Origin, plan: PackPlan) -> None:
    """Raise BadHeader if a shard index, or the numbers of shards, tell of one that is missing."""
    present = {file.path for file in plan.files}
    check_numbering(present)
    for file in plan.files:
        if file.path.endswith(".safetensors.index.json") and file.size <= limits.HEADER_BYTES:
            with origin.open(file) as opened:
                check_shards(opened.read(), present, file.path)


def _config(origin: Origin, files: list[SourceFile]) -> Mapping[str, object]:
    for file in files:
        if file.path == "config.json" and file.size <= limits.CONFIG_BYTES:
            with origin.open(file) as opened:
                data = opened.read(limits.CONFIG_BYTES)
            if len(data) != file.size:
                raise BadSource(f"{file.path}: changed while it was being packed")
            return parse_config(data) or {}
    return {}
