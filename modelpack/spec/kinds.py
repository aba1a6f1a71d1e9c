"""What kind of artifact a manifest describes, and how its layers become files.

Read are: our own, CNCF ModelPack v0.0.7 (and its `cnai` predecessor), OCI and Docker images, KitOps
ModelKits, and plain ORAS artifacts. Pure functions of a manifest.
"""

import platform as machine
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from modelpack.spec import media, names
from modelpack.spec.errors import BadManifest, HostilePath, InputError, Unsupported
from modelpack.spec.manifest import Descriptor, Index, Manifest, Platform
from modelpack.spec.paths import check_tree, checked

_TITLE: Final = "org.opencontainers.image.title"
# modctl's order: the legacy key counts where the present one is absent.
_FILE_PATHS: Final = ("org.cncf.model.filepath", "org.cnai.model.filepath", _TITLE)
_UNPACK: Final = "io.deis.oras.content.unpack"
_KIT_CONFIG: Final = "application/vnd.kitops.modelkit.config.v1+json"
_KITFILE: Final = "Kitfile"
_MODELPACK: Final = ("application/vnd.cncf.model.", "application/vnd.cnai.model.")
_MODELKIT: Final = ("application/vnd.kitops.modelkit.",)
_IMAGE_CONFIGS: Final = (media.OCI_CONFIG, "application/vnd.docker.container.image.v1+json")
_IMAGE_LAYER: Final = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff)\.tar(?:[+.](gzip|zstd))?"
)
_MODEL_LAYER: Final = re.compile(
    r"application/vnd\.(?:cncf\.model|cnai\.model|kitops\.modelkit)\.[a-z]+(?:\.[a-z]+)?\.v1\."
    r"(?:(raw)|tar(?:\+(gzip|zstd))?)"
)
_READABLE: Final = (
    "readable are OCI and Docker image layers, ModelPack and KitOps layers (raw, tar, tar+gzip, "
    "tar+zstd), and files with a title (ORAS)"
)
_FOREIGN: Final = (
    ("a signature", ("application/vnd.dev.cosign.", "application/vnd.dev.sigstore.",
                     "application/vnd.cncf.notary.")),
    ("an attestation", ("application/vnd.in-toto", "application/vnd.dsse.")),
    ("a Helm chart", ("application/vnd.cncf.helm.",)),
    ("a WebAssembly module", ("application/wasm", "application/vnd.wasm.",
                              "application/vnd.module.wasm.")),
    ("a chunk index", (names.INDEX_ARTIFACT_TYPE,)),
)  # fmt: skip
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


class Kind(Enum):
    """Whose format an artifact is in."""

    PACKED = "modelpack image"  # ours: it carries a chunk index
    MODELPACK = "CNCF ModelPack"
    IMAGE = "image"
    MODELKIT = "KitOps ModelKit"
    ORAS = "ORAS artifact"


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one blob becomes files.

    `form` is "raw" (the blob is the file at `path`) or "tar" (members carry their own paths, `path`
    is empty). `compression` is "", "gzip" or "zstd". The media type of `descriptor` is the one to
    read the blob as: that of the manifest, except where ORAS is known to mislabel directories.
    """

    descriptor: Descriptor
    form: str
    compression: str
    path: str


def encoding(media_type: str) -> tuple[str, str] | None:
    """Return (form, compression) of a layer's media type as in LayerPlan; None if unknown."""
    if match := _IMAGE_LAYER.fullmatch(media_type):
        return "tar", match[1] or ""
    if match := _MODEL_LAYER.fullmatch(media_type):
        return match[1] or "tar", match[2] or ""
    return None


def has_whiteouts(media_type: str) -> bool:
    """Whether `.wh.` names in such a layer remove files of earlier ones (image-spec, layer.md)."""
    return _IMAGE_LAYER.fullmatch(media_type) is not None


def classify(manifest: Manifest) -> Kind:
    """Say whose format this is; raises Unsupported for what is known not to be a model."""
    if any(_is_index(layer) for layer in manifest.layers):
        return Kind.PACKED
    types = [manifest.artifact_type, manifest.config.media_type]
    layers = [layer.media_type for layer in manifest.layers]
    for what, prefixes in _FOREIGN:
        if _any(types, prefixes) or (layers and all(one.startswith(prefixes) for one in layers)):
            raise Unsupported(f"this artifact is {what}, not a model")
    # By config before layers: KitOps writes ModelPacks that carry a Kitfile as a layer.
    for found in (types, layers):
        for kind, prefixes in ((Kind.MODELPACK, _MODELPACK), (Kind.MODELKIT, _MODELKIT)):
            if _any(found, prefixes):
                return kind
    return Kind.IMAGE if manifest.config.media_type in _IMAGE_CONFIGS else Kind.ORAS


def layer_plan(manifest: Manifest) -> list[LayerPlan]:
    """Say how every blob becomes files, in the order in which they apply.

    Of a ModelKit the config is one of them, as `Kitfile` (JSON, hence YAML), as `kit unpack` writes
    it. A chunk index is left out. Raises Unsupported, naming the layer, for types that cannot be
    read, BadManifest for a file without a path, HostilePath.
    """
    kind = classify(manifest)
    if not manifest.layers:
        raise BadManifest("the manifest has no layers", hint="nothing was pushed there but a name")
    plans = list(_plans(manifest, kind))
    files = [plan.path for plan in plans if plan.form == "raw"]
    for path in files:
        if checked(path).partition("/")[0] == names.RESERVED_DIRECTORY:
            raise HostilePath(f"path {path[:80]!r} is in the directory that modelpack keeps")
    check_tree(files)
    return plans


def _plans(manifest: Manifest, kind: Kind) -> Iterator[LayerPlan]:
    if manifest.config.media_type == _KIT_CONFIG:
        yield LayerPlan(manifest.config, "raw", "", _KITFILE)
    for layer in manifest.layers:
        if not _is_index(layer):
            yield _oras_plan(layer) if kind is Kind.ORAS else _plan(layer)


def _plan(layer: Descriptor) -> LayerPlan:
    if layer.media_type == _KIT_CONFIG:
        return LayerPlan(layer, "raw", "", _KITFILE)
    found = encoding(layer.media_type)
    if found is None:
        raise _unreadable(layer)
    form, compression = found
    # As modctl and kit do: the names in an archive count, not what the layer says of it.
    path = _path(layer) if form == "raw" else ""
    if form == "raw" and not path:
        raise BadManifest(
            f"layer {layer.digest} ({layer.media_type}): says no path for its file",
            hint=f"the publisher must set the annotation {_FILE_PATHS[0]}",
        )
    return LayerPlan(layer, form, compression, path)


def _oras_plan(layer: Descriptor) -> LayerPlan:
    path = _path(layer)
    if not path:
        return _plan(layer)
    gzipped = msgspec.structs.replace(layer, media_type=f"{media.LAYER_TAR}+gzip")
    # oras-py marks directories by nothing but the media type; files are plain "tar" to it.
    by_type = layer.media_type == gzipped.media_type and not path.endswith((".gz", ".tgz"))
    if (layer.annotations or {}).get(_UNPACK, "").lower() != "true" and not by_type:
        return LayerPlan(layer, "raw", "", path)
    # Directories are always sent as gzipped tar, whatever media type the user gave them.
    return LayerPlan(gzipped, "tar", "gzip", "")


def _unreadable(layer: Descriptor) -> Unsupported:
    shown = layer.media_type[:100]
    return Unsupported(f"layer {layer.digest}: media type {shown!r} cannot be read", hint=_READABLE)


def _path(layer: Descriptor) -> str:
    found = (layer.annotations or {}).get
    return next((path for key in _FILE_PATHS if (path := found(key))), "")


def _is_index(layer: Descriptor) -> bool:
    return (layer.annotations or {}).get(names.ROLE) == names.ROLE_INDEX


def _any(types: list[str], prefixes: tuple[str, ...]) -> bool:
    return any(one.startswith(prefixes) for one in types)


def pick(index: Index, platform: str | None, *, architecture: str = "") -> Descriptor:
    """Choose the entry of an image index for `platform`, "os/architecture[/variant]".

    Without one: linux on this machine's architecture (or the one given), then an entry that names
    no platform, then linux/amd64, then the only one there is. Attestations are no entries. Raises
    Unsupported, listing what is there, and InputError for a platform that is none.
    """
    entries = [entry for entry in index.manifests if not _is_attestation(entry)]
    if platform:
        found = [entry for entry in entries if _matches(entry.platform, _parsed(platform))]
    else:
        native = machine.machine()
        wanted = architecture or _ARCHITECTURES.get(native, native)
        found = [
            *(entry for entry in entries if _matches(entry.platform, Platform(wanted, "linux"))),
            *(entry for entry in entries if not str(entry.platform or "")),
            *(entry for entry in entries if _matches(entry.platform, Platform("amd64", "linux"))),
            *(entries if len(entries) == 1 else ()),
        ]
    if found:
        return found[0]
    there = sorted({str(entry.platform or "") or "no platform" for entry in entries})
    raise Unsupported(
        f"the image index has {', '.join(there[:20])[:400] or 'no entries'}; "
        f"nothing for {platform or 'this machine'}",
        hint="choose one with --platform" if there else "",
    )


def _is_attestation(entry: Descriptor) -> bool:
    kind = (entry.annotations or {}).get("vnd.docker.reference.type", "")
    return bool(kind) or str(entry.platform or "").startswith("unknown/unknown")


def _parsed(platform: str) -> Platform:
    parts = platform.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(
            f"{platform[:60]!r} is not a platform; expected os/architecture, such as linux/arm64"
        )
    architecture = _ARCHITECTURES.get(parts[1], parts[1])
    return Platform(architecture, parts[0], parts[2] if len(parts) == 3 else "")


def _matches(offered: Platform | None, wanted: Platform) -> bool:
    """Whether an entry will do; a variant counts only if one is asked for."""
    if offered is None or (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return False
    if wanted.architecture == "arm64":  # v8 is what no variant means (image-spec, image-index.md)
        return (wanted.variant or "v8") == (offered.variant or "v8")
    return wanted.variant in ("", offered.variant)
