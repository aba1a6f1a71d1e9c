"""Which artifacts are read, and how their layers become files."""

import re

import pytest

from modelpack.spec import media, names
from modelpack.spec.errors import BadManifest, HostilePath, InputError, Unsupported
from modelpack.spec.kinds import Kind, LayerPlan, classify, encoding, layer_plan, pick
from modelpack.spec.manifest import Descriptor, Index, Manifest, Platform

DIGEST = "sha256:" + "5" * 64
CNCF = "application/vnd.cncf.model."
KIT = "application/vnd.kitops.modelkit."
FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
UNPACK = {TITLE: "weights", "io.deis.oras.content.unpack": "true"}
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"


def blob(media_type: str, **annotations: str) -> Descriptor:
    return Descriptor(media_type, DIGEST, 7, annotations=annotations or None)


def manifest(config: str, *layers: Descriptor, artifact_type: str = "") -> Manifest:
    return Manifest(config=blob(config), layers=layers, artifact_type=artifact_type)


def image(*layers: Descriptor) -> Manifest:
    return manifest(media.OCI_CONFIG, *layers)


INDEX_LAYER = blob(media.LAYER_TAR, **{names.ROLE: names.ROLE_INDEX})
RAW = blob(f"{CNCF}weight.v1.raw", **{FILEPATH: "model.safetensors"})


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (image(blob(media.LAYER_TAR), INDEX_LAYER), Kind.PACKED),
        (image(blob(media.LAYER_TAR)), Kind.IMAGE),
        (manifest(DOCKER_CONFIG, blob("application/vnd.docker.image.rootfs.diff.tar.gzip")),
            Kind.IMAGE),
        (manifest(media.MODEL_CONFIG, RAW, artifact_type=media.MODEL_MANIFEST), Kind.MODELPACK),
        (manifest("application/vnd.cnai.model.config.v1+json", RAW), Kind.MODELPACK),
        (image(RAW), Kind.MODELPACK),  # modctl writes and reads such manifests too
        (manifest(media.MODEL_CONFIG, RAW, blob(f"{KIT}config.v1+json")), Kind.MODELPACK),
        (manifest(f"{KIT}config.v1+json", blob(f"{KIT}model.v1.tar")), Kind.MODELKIT),
        (manifest(media.OCI_EMPTY, blob("text/plain", **{TITLE: "a"})), Kind.ORAS),
        (manifest("application/vnd.unknown.config.v1+json", blob(media.LAYER_TAR)), Kind.ORAS),
    ],
)  # fmt: skip
def test_kinds(found, kind):
    """Every format that is read is told from the others."""
    assert classify(found) is kind


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (image(blob("application/vnd.dev.cosign.simplesigning.v1+json")), "a signature"),
        (manifest(media.OCI_EMPTY, blob("application/vnd.dev.sigstore.bundle.v0.3+json"),
            artifact_type="application/vnd.dev.sigstore.bundle.v0.3+json"), "a signature"),
        (manifest("application/vnd.cncf.notary.signature", blob("application/jose+json")),
            "a signature"),
        (image(blob("application/vnd.in-toto+json"), blob("application/vnd.in-toto+json")),
            "an attestation"),
        (image(blob("application/vnd.dsse.envelope.v1+json")), "an attestation"),
        (manifest("application/vnd.cncf.helm.config.v1+json",
            blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip")), "a Helm chart"),
        (manifest("application/vnd.wasm.config.v0+json", blob("application/wasm")),
            "a WebAssembly module"),
        (manifest(media.OCI_EMPTY, blob(names.INDEX_ARTIFACT_TYPE),
            artifact_type=names.INDEX_ARTIFACT_TYPE), "a chunk index"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_named(found, what):
    """Artifacts that live beside models are refused by what they are."""
    for ask in (classify, layer_plan):
        with pytest.raises(Unsupported, match=f"is {what}, not a model"):
            ask(found)


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        *((f"application/vnd.oci.image.layer.{infix}v1.tar{suffix}", ("tar", packing))
          for infix in ("", "nondistributable.")
          for suffix, packing in (("", ""), ("+gzip", "gzip"), ("+zstd", "zstd"))),
        ("application/vnd.docker.image.rootfs.diff.tar", ("tar", "")),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", ("tar", "gzip")),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", ("tar", "gzip")),
        *((f"{CNCF}{kind}.v1.{form}", ("raw" if form == "raw" else "tar", packing))
          for kind in ("weight", "weight.config", "doc", "code", "dataset")
          for form, packing in (("raw", ""), ("tar", ""), ("tar+gzip", "gzip"),
                                ("tar+zstd", "zstd"))),
        ("application/vnd.cnai.model.layer.v1.tar", ("tar", "")),
        (f"{KIT}modelpart.v1.tar+gzip", ("tar", "gzip")),
        (f"{KIT}docs.v1.raw", ("raw", "")),
        *((other, None) for other in (
            "", "text/plain", f"{CNCF}weight.v1.raw+gzip", f"{CNCF}weight.v1.tar+lz4",
            f"{media.LAYER_TAR}+encrypted", f"x{media.LAYER_TAR}", f"{media.LAYER_TAR}\n",
            f"{media.OCI_CONFIG}", f"{CNCF}config.v1+json")),
    ],
)  # fmt: skip
def test_encodings(media_type, expected):
    """All 20 ModelPack types, and those of images and ModelKits, are known; nothing else is."""
    assert encoding(media_type) == expected


@pytest.mark.parametrize(
    ("annotations", "path"),
    [
        ({FILEPATH: "a/b"}, "a/b"),
        ({"org.cnai.model.filepath": "a/b"}, "a/b"),
        ({TITLE: "a/b"}, "a/b"),
        ({TITLE: "c", FILEPATH: "a/b", "org.cnai.model.filepath": "d"}, "a/b"),
        ({FILEPATH: "", TITLE: "a/b"}, "a/b"),
    ],
)
def test_paths_of_raw_layers(annotations, path):
    """A raw layer is the file that its annotations name; the present key goes first."""
    layer = blob(f"{CNCF}weight.v1.raw", **annotations)
    assert layer_plan(manifest(media.MODEL_CONFIG, layer)) == [LayerPlan(layer, "raw", "", path)]


def test_a_raw_layer_needs_a_path():
    """Without a path there is nothing to call the file."""
    with pytest.raises(BadManifest, match=f"layer {DIGEST}.*no path"):
        layer_plan(manifest(media.MODEL_CONFIG, blob(f"{CNCF}weight.v1.raw")))


def test_archives_carry_their_own_paths():
    """What the layer says of an archive's content does not move it, as in modctl."""
    layer = blob(f"{CNCF}weight.v1.tar", **{FILEPATH: "sub/model"})
    assert layer_plan(manifest(media.MODEL_CONFIG, layer)) == [LayerPlan(layer, "tar", "", "")]


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../b", "a\0b", "a//b", ".modelpack/lock", "x" * 300]
)
@pytest.mark.parametrize("config", [media.MODEL_CONFIG, media.OCI_EMPTY])
def test_hostile_paths(path, config):
    """Paths of raw layers are checked like all others."""
    with pytest.raises(HostilePath):
        layer_plan(manifest(config, blob(f"{CNCF}weight.v1.raw", **{TITLE: path})))


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a")])
def test_raw_layers_must_be_a_tree(paths):
    """Two files of one path, or a file where a directory must be, are refused."""
    layers = [blob("application/octet-stream", **{TITLE: path}) for path in paths]
    with pytest.raises(HostilePath):
        layer_plan(manifest(media.OCI_EMPTY, *layers))


def test_the_chunk_index_is_no_layer():
    """Where our own artifact is read as an image, its index is left out."""
    layer = blob(f"{media.LAYER_TAR}+gzip")
    assert layer_plan(image(layer, INDEX_LAYER)) == [LayerPlan(layer, "tar", "gzip", "")]


def test_a_modelkit_has_a_kitfile():
    """The config of a ModelKit becomes its Kitfile, and layers come after it."""
    layer = blob(f"{KIT}model.v1.tar+gzip", **{FILEPATH: "model"})
    kit = manifest(f"{KIT}config.v1+json", layer)
    assert layer_plan(kit) == [
        LayerPlan(kit.config, "raw", "", "Kitfile"),
        LayerPlan(layer, "tar", "gzip", ""),
    ]


def test_a_modelpack_of_kitops_has_a_kitfile():
    """A ModelPack that KitOps wrote carries its Kitfile as a layer."""
    kitfile = blob(f"{KIT}config.v1+json")
    assert layer_plan(manifest(media.MODEL_CONFIG, RAW, kitfile))[1] == LayerPlan(
        kitfile, "raw", "", "Kitfile"
    )


def test_oras_files_and_directories():
    """Titled layers are files whatever their type; marked ones are gzipped directories."""
    gguf = blob("application/vnd.docker.ai.gguf.v3", **{TITLE: "model.gguf"})
    tar = blob(media.LAYER_TAR, **{TITLE: "data.tar"})  # the type that oras gives to any file
    folder = blob("application/vnd.me.folder", **UNPACK)
    plans = layer_plan(manifest(media.OCI_EMPTY, gguf, tar, folder))
    assert plans[:2] == [
        LayerPlan(gguf, "raw", "", "model.gguf"),
        LayerPlan(tar, "raw", "", "data.tar"),
    ]
    assert (plans[2].form, plans[2].compression, plans[2].path) == ("tar", "gzip", "")
    assert encoding(plans[2].descriptor.media_type) == ("tar", "gzip")
    assert plans[2].descriptor.digest == folder.digest


def test_untitled_archives_of_oras_are_archives():
    """Without a title only a known archive can be read."""
    layer = blob(f"{media.LAYER_TAR}+gzip")
    assert layer_plan(manifest(media.OCI_EMPTY, layer)) == [LayerPlan(layer, "tar", "gzip", "")]


@pytest.mark.parametrize(
    "found",
    [
        image(blob("application/vnd.ollama.image.model")),
        image(blob("application/vnd.ollama.image.model", **{TITLE: "model"})),
        manifest(media.MODEL_CONFIG, RAW, blob("application/vnd.other", **{FILEPATH: "x"})),
        manifest(media.OCI_EMPTY, blob("application/vnd.other")),
        manifest(f"{KIT}config.v1+json", blob(f"{KIT}model.v2.tar")),
    ],
)
def test_unknown_layers_are_named(found):
    """A layer that cannot be read is named with its type, and what can be read is said."""
    shown = re.escape(found.layers[-1].media_type)
    with pytest.raises(Unsupported, match=f"layer {DIGEST}: media type '{shown}'") as caught:
        layer_plan(found)
    assert "ModelPack" in caught.value.hint


def test_an_artifact_without_layers():
    """A manifest without layers is refused rather than pulled as nothing."""
    with pytest.raises(BadManifest, match="no layers"):
        layer_plan(image())


def entry(platform: str, number: int = 0, **annotations: str) -> Descriptor:
    system, _, rest = platform.partition("/")
    architecture, _, variant = rest.partition("/")
    digest = f"sha256:{number:064x}"
    where = Platform(architecture, system, variant) if platform else None
    return Descriptor(
        media.OCI_MANIFEST, digest, 7, annotations=annotations or None, platform=where
    )


def choose(found: list[str], platform: str | None = None, architecture: str = "arm64") -> int:
    index = Index(manifests=tuple(entry(one, number) for number, one in enumerate(found)))
    return int(pick(index, platform, architecture=architecture).digest.removeprefix("sha256:"), 16)


@pytest.mark.parametrize(
    ("found", "platform", "chosen"),
    [
        (["linux/amd64", "linux/arm64"], None, 1),
        (["linux/amd64", "linux/arm64/v8"], None, 1),
        (["", "linux/arm64"], None, 1),
        (["linux/amd64", ""], None, 1),
        (["windows/amd64", "linux/amd64"], None, 1),
        (["windows/amd64"], None, 0),
        (["unknown/unknown", "linux/s390x"], None, 1),
        (["linux/arm64", "linux/arm64"], None, 0),
        (["linux/arm64", "linux/amd64"], "linux/amd64", 1),
        (["linux/arm64", "linux/amd64"], "linux/x86_64", 1),
        (["linux/amd64", "linux/arm64"], "linux/arm64/v8", 1),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", 1),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm", 0),
        (["linux/amd64", "windows/amd64"], "windows/amd64", 1),
    ],
)
def test_the_entry_for_this_machine(found, platform, chosen):
    """Asked for or not, the best fitting entry is taken; attestations never are."""
    assert choose(found, platform) == chosen


def test_this_machine_is_asked_for_its_architecture(monkeypatch):
    """Python's names of architectures are not those of images."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert choose(["linux/amd64", "linux/arm64"], architecture="") == 1
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert choose(["linux/amd64", "linux/riscv64"], architecture="") == 1


@pytest.mark.parametrize(
    ("found", "platform", "listed"),
    [
        (["windows/amd64", "linux/s390x"], None, "has linux/s390x, windows/amd64"),
        (["linux/arm64", ""], "linux/amd64", "has linux/arm64, no platform; nothing for linux/am"),
        (["linux/arm/v6"], "linux/arm/v7", "has linux/arm/v6"),
    ],
)
def test_an_index_without_a_fitting_entry(found, platform, listed):
    """What is there is listed, and how to choose it."""
    with pytest.raises(Unsupported, match=listed) as caught:
        choose(found, platform)
    assert "--platform" in caught.value.hint


def test_an_index_of_attestations():
    """Entries that describe other entries are not models."""
    index = Index(manifests=(entry("linux/amd64", **{"vnd.docker.reference.type": "x"}),))
    with pytest.raises(Unsupported, match="has no entries"):
        pick(index, None)


@pytest.mark.parametrize("platform", ["linux", "linux/", "/amd64", "a/b/c/d"])
def test_a_platform_that_is_none(platform):
    """A mistyped platform is the caller's error, not the artifact's."""
    with pytest.raises(InputError, match="os/architecture"):
        choose(["linux/amd64", "linux/arm64"], platform)
