"""The CNCF ModelPack form: configs against the specification's schema and its vectors."""

import json

import jsonschema
import pytest

from modelpack.oci.layout import LayoutRepository
from modelpack.pack.cncf import layer_type
from modelpack.pack.origin import SourceFile
from modelpack.spec import media, names
from modelpack.spec.manifest import decode
from modelpack.spec.reference import Reference
from modelpack.state.digests import FileKey
from modelpack.verbs.push import PushOptions, push

STRINGS = {"type": "array", "items": {"type": "string"}}
KINDS = {
    "type": "array",
    "items": {"enum": ["text", "image", "audio", "video", "embedding", "other"]},
}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}


def closed(required=(), **properties):
    return {"type": "object", "additionalProperties": False, "properties": properties,
            "required": list(required)}  # fmt: skip


TEXT = {"type": "string"}
# Written from docs/config.md of model-spec v0.0.7: closed objects at every level.
SCHEMA = closed(
    ("descriptor", "config", "modelfs"),
    descriptor=closed(
        createdAt=TIME, authors=STRINGS, vendor=TEXT, family=TEXT,
        name={"type": "string", "minLength": 1}, version=TEXT, title=TEXT, description=TEXT,
        docURL=TEXT, sourceURL=TEXT, datasetsURL=STRINGS, revision=TEXT, licenses=STRINGS,
    ),
    config=closed(
        architecture=TEXT, format=TEXT, paramSize=TEXT, precision=TEXT, quantization=TEXT,
        capabilities=closed(
            inputTypes=KINDS, outputTypes=KINDS, knowledgeCutoff=TIME, reasoning={"type": "boolean"},
            toolUsage={"type": "boolean"}, reward={"type": "boolean"},
            languages={"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2}$"}},
        ),
    ),
    modelfs=closed(
        ("type", "diffIds"), type={"const": "layers"}, diffIds={**STRINGS, "minItems": 1}
    ),
)  # fmt: skip
GOOD = {"descriptor": {"name": "m"}, "config": {"paramSize": "8b"},
        "modelfs": {"type": "layers", "diffIds": ["sha256:" + "1" * 64]}}  # fmt: skip
BAD = [
    ("config", None), ("descriptor.version", 3.1), ("descriptor.revision", 1), ("config.paramSize", 8),
    ("config.precision", 16), ("descriptor.createdAt", "2025/01/01T00:00:00Z"),
    ("descriptor.authors", "me"), ("descriptor.licenses", "MIT"), ("descriptor.datasetsURL", "u"),
    ("descriptor.docURL", ["u"]), ("descriptor.sourceURL", ["u"]), ("modelfs.type", "layer"),
    ("modelfs.diffIds", "sha256:1"), ("modelfs.diffIds", []),
    ("config.capabilities", {"inputTypes": "text"}), ("config.capabilities", {"outputTypes": "text"}),
    ("config.capabilities", {"inputTypes": ["img"]}),
    ("config.capabilities", {"knowledgeCutoff": "2025-01-01"}),
    ("config.capabilities", {"reasoning": "true"}), ("config.capabilities", {"toolUsage": "true"}),
    ("config.capabilities", {"reward": "true"}), ("config.capabilities", {"languages": "en"}),
    ("config.capabilities", {"languages": ["fra"]}), ("config.capabilities", {"unknown": True}),
]  # fmt: skip


def changed(path, value):
    config = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return config


def test_the_schema_accepts_what_it_should():
    """The vectors of the specification that pass."""
    jsonschema.validate(GOOD, SCHEMA)
    jsonschema.validate(changed("config.capabilities", {"inputTypes": ["text"]}), SCHEMA)
    jsonschema.validate(changed("descriptor.createdAt", "2025-01-01T00:00:00Z"), SCHEMA)


@pytest.mark.parametrize(("path", "value"), BAD)
def test_the_schema_refuses_what_it_should(path, value):
    """The vectors of the specification that fail: otherwise the next test would show nothing."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(path, value), SCHEMA)


@pytest.mark.parametrize("epoch", ["", "1767225600"])
def test_what_we_write_is_valid(epoch, model, tmp_path, session, monkeypatch):
    """Config, manifest, layer types and annotations are those of v0.0.7, in Go's key order."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    reference = Reference.parse(f"oci:{tmp_path / 'tiny'}:v1")
    push(str(model), reference, session(), PushOptions(modelpack_form=True))
    layout = LayoutRepository(tmp_path / "tiny")
    descriptor, data = layout.manifest("v1")
    manifest = decode(data, "x")
    text = (tmp_path / "tiny" / "blobs" / "sha256" / manifest.config.digest[7:]).read_text()
    config = json.loads(text)
    jsonschema.validate(config, SCHEMA)
    assert list(config) == ["descriptor", "modelfs", "config"]
    assert config["descriptor"]["name"] == "tiny"
    assert config["config"]["precision"] == "bfloat16"
    assert config["modelfs"]["diffIds"] == [layer.digest for layer in manifest.layers]
    assert list(json.loads(data))[:5] == [
        "schemaVersion",
        "mediaType",
        "artifactType",
        "config",
        "layers",
    ]
    assert manifest.artifact_type == media.MODEL_MANIFEST
    for layer in manifest.layers:
        assert layer.media_type.startswith("application/vnd.cncf.model.")
        assert layer.media_type.endswith(".v1.raw")
        metadata = json.loads(layer.annotations["org.cncf.model.file.metadata+json"])
        path = layer.annotations["org.cncf.model.filepath"]
        assert metadata == {
            "name": path.rpartition("/")[2], "mode": 420, "uid": 0, "gid": 0, "size": layer.size,
            "mtime": "1970-01-01T00:00:00Z", "typeflag": 0,
        }  # fmt: skip
    (beside,) = layout.referrers(descriptor.digest, names.INDEX_ARTIFACT_TYPE)
    assert beside.digest != descriptor.digest
    layout.close()


@pytest.mark.parametrize(
    ("path", "size", "kind"),
    [
        ("model.safetensors", 5, "weight"), ("x/model.gguf", 5, "weight"), ("pytorch_model.bin", 5, "weight"),
        ("config.json", 5, "weight.config"), ("tokenizer.model", 5, "weight.config"), ("README.md", 5, "doc"),
        ("LICENSE", 5, "doc"), ("modeling.py", 5, "code"), ("train.parquet", 5, "dataset"),
        ("unknown", 20 << 20, "weight"),
    ],
)  # fmt: skip
def test_layer_types(path, size, kind):
    """Types are chosen by name, as modctl does."""
    assert layer_type(SourceFile(path, "", size, FileKey(0, 0, size, 0, 0))) == kind
