"""`modelpack push`: a directory becomes an artifact in a registry."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from modelpack.chunks.table import TableCache
from modelpack.pack.build import Built, build
from modelpack.pack.cncf import build_modelpack
from modelpack.pack.content import PackedLayer, PlainLayer
from modelpack.pack.digest import Digester, LayerDigests
from modelpack.pack.origin import Origin
from modelpack.pack.plan import PackPlan, PlannedLayer, check_complete, make_plan
from modelpack.pack.walk import Directory
from modelpack.spec import media
from modelpack.spec.blob_limits import blob_limit
from modelpack.spec.errors import HostilePath, InputError, NotFound
from modelpack.spec.index import Coding
from modelpack.spec.manifest import Descriptor
from modelpack.spec.paths import checked
from modelpack.spec.progress import Counter
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository
from modelpack.spec.source import Bytes, Content
from modelpack.state.homes import Homes
from modelpack.transfer.crew import work
from modelpack.verbs.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """How to pack. `modelpack_form` writes the CNCF ModelPack form instead of ours."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    prefix: str = ""
    modelpack_form: bool = False
    coding: Coding = field(default_factory=Coding)
    annotations: Mapping[str, str] = field(default_factory=dict)
    mount_from: Sequence[str] = ()


class PushResult(msgspec.Struct, frozen=True):
    """What happened. Bytes are payload bytes in `bytes_total`, blob bytes in the others."""

    reference: str
    digest: str
    bytes_total: int
    bytes_moved: int
    bytes_reused: int
    seconds: float
    files: int
    layers: int
    chunks: int


def push(source: str, reference: Reference, session: Session, options: PushOptions) -> PushResult:
    """Pack `source` and publish it as `reference`.

    Every file is looked at before the first byte is uploaded; the manifest is uploaded last, so a
    tag never names something incomplete. Run again after an interruption, it continues. Raises
    InputError, ArtifactError, RegistryError.
    """
    started = time.monotonic()
    if reference.digest:
        raise InputError(f"{reference}: a digest is a result of a push; give a tag, or nothing")
    if not source:
        raise InputError("the source is empty", hint="name a directory; '.' for this one")
    layout = Path(reference.layout).resolve() if reference.layout else None
    if layout and layout.is_relative_to(Path(source).resolve()):
        raise InputError(
            f"{reference}: the layout is inside of what is packed",
            hint="choose a layout beside the model, not in it",
        )
    origin = open_origin(source, options)
    prefix = _prefix(options.prefix)
    plan = make_plan(
        origin,
        prefix=prefix,
        raw=options.modelpack_form,
        chunk_size=options.coding.chunk_size,
    )
    if not (options.include or options.exclude or Path(source).is_file()):
        check_complete(origin, plan)
    _check_limits(plan, reference, options)
    with session.repository(reference) as repository:
        publisher = _Publisher(origin, repository, reference, session, options)
        digests = publisher.layers(plan)
        built, beside = _build(plan, digests, reference, options)
        for blob in (*built.companions, *(beside[1] if beside else ())):
            publisher.put(blob.blob, blob)
        # Asked now: somebody may have moved the tag since.
        if _present(repository, reference) != built.digest.hex:
            repository.put_manifest(built.manifest, media.OCI_MANIFEST, reference.target)
        if beside:
            repository.put_manifest(beside[0], media.OCI_MANIFEST)
    return PushResult(
        reference=str(reference.at(built.digest)),
        digest=str(built.digest),
        bytes_total=plan.total_bytes,
        bytes_moved=publisher.moved.total,
        bytes_reused=publisher.reused.total,
        seconds=round(time.monotonic() - started, 3),
        files=len(plan.files),
        layers=len(built.layers),
        chunks=len(built.index),
    )


def _prefix(text: str) -> str:
    try:
        return f"{checked(text.removesuffix('/'))}/" if text else ""
    except HostilePath as error:
        raise InputError(f"--prefix {text[:80]!r}: {error}", hint="such as: models") from None


def open_origin(source: str, options: PushOptions) -> Origin:
    """Open a directory, a file or `s3://bucket/prefix`."""
    if source.startswith("s3://"):
        try:
            from modelpack.s3.bucket import Bucket
        except ModuleNotFoundError:
            raise InputError(
                f"{source}: reading S3 needs boto3", hint="pip install 'modelpack-oci[s3]'"
            ) from None
        return Bucket(source, options.include, options.exclude)
    return Directory(Path(source), options.include, options.exclude)


class _Publisher:
    """Uploads what is missing, and counts."""

    def __init__(
        self,
        origin: Origin,
        repository: Repository,
        reference: Reference,
        session: Session,
        options: PushOptions,
    ) -> None:
        self._origin = origin
        self._repository = repository
        self._session = session
        self._codec = options.coding.codec
        tables = TableCache(session.cache, options.coding.algorithm, options.coding.chunk_size)
        self._digester = Digester(origin, tables, session.cache, options.coding.codec)
        self._homes = Homes(session.database, reference, options.mount_from)
        self._hashing = session.reporter.bar("hashing")
        self.moved = Counter(session.reporter.bar("uploading"))
        self.reused = Counter(session.reporter.bar("already there"))

    def layers(self, plan: PackPlan) -> list[LayerDigests]:
        """Digest and upload all layers: while one is uploaded, the next is read."""
        results: dict[int, LayerDigests] = {}
        self._hashing.expect(plan.total_bytes)
        self.moved.expect(sum(layer.size for layer in plan.layers))

        def publish(job: tuple[int, PlannedLayer]) -> None:
            number, layer = job
            result = self._digester.digests(layer, self._hashing)
            results[number] = result
            # Compression, and what is there already, make the upload smaller than was expected.
            self.moved.expect(result.size - layer.size)
            blob = Descriptor(media.LAYER_TAR, result.digest, result.size)
            content: Content = (
                PackedLayer(self._origin, layer, blob, result)
                if self._codec
                else PlainLayer(self._origin, layer, blob)
            )
            if not self.put(blob, content):
                self.moved.expect(-result.size)

        work(enumerate(plan.layers), publish, workers=self._session.jobs)
        return [results[number] for number in range(len(plan.layers))]

    def put(self, blob: Descriptor, content: Content | Bytes) -> bool:
        """Upload a blob unless the registry has it or can mount it; whether it was uploaded."""
        # A blob of another size is a damaged one: uploading it again is what mends it.
        there = self._repository.stat_blob(blob.digest) == blob.size or any(
            self._repository.mount_blob(blob, home) for home in self._homes.of(blob.digest)
        )
        if there:
            self.reused.advance(blob.size)
        else:
            self._repository.put_blob(content, self.moved)
        self._homes.add(blob.digest)
        return not there


def _present(repository: Repository, reference: Reference) -> str:
    """Return the hex digest that the tag names now. Also meets a wrong password before hashing."""
    try:
        descriptor, _ = repository.manifest(reference.target)
    except NotFound:
        return ""
    return descriptor.checked_digest.hex


def _build(
    plan: PackPlan, digests: Sequence[LayerDigests], reference: Reference, options: PushOptions
) -> tuple[Built, tuple[bytes, tuple[Bytes, ...]] | None]:
    if not options.modelpack_form:
        return build(plan, digests, options.coding, options.annotations), None
    name = (reference.repository or reference.layout).rstrip("/").rpartition("/")[2]
    built, manifest, blobs = build_modelpack(
        plan, digests, options.coding, options.annotations, name
    )
    return built, (manifest, blobs)


def _check_limits(plan: PackPlan, reference: Reference, options: PushOptions) -> None:
    known = blob_limit(reference.registry)
    if known is None or options.coding.codec:
        return
    whose, limit = known
    for layer in plan.layers:
        if layer.size > limit:
            raise InputError(
                f"{layer.name}: a layer of {layer.size} bytes; {whose} takes at most {limit}",
                hint="save the model in smaller shards (save_pretrained(max_shard_size='9GB'), "
                "gguf-split --split-max-size 9G), or push to a registry without this limit",
            )
