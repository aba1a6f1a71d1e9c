import msgspec
import pytest

from modelpack.spec import limits, media
from modelpack.spec.errors import BadManifest, LimitExceeded
from modelpack.spec.manifest import Descriptor, Index, Manifest, decode, describe, encode

CONFIG = describe(media.OCI_CONFIG, b"{}")


def test_encoding_is_compact_ordered_and_sorted():
    """Keys stand in the order of the specification, annotation keys are sorted."""
    manifest = Manifest(
        media_type=media.OCI_MANIFEST,
        config=CONFIG,
        layers=(Descriptor("t", CONFIG.digest, 1, annotations={"z": "1", "a": "2"}),),
        annotations={"b": "1", "a": "ü"},
    )
    assert encode(manifest).decode() == (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        f'"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{CONFIG.digest}",'
        f'"size":2}},"layers":[{{"mediaType":"t","digest":"{CONFIG.digest}","size":1,'
        '"annotations":{"a":"2","z":"1"}}],"annotations":{"a":"ü","b":"1"}}'
    )
    assert decode(encode(manifest), "x") == manifest


def test_indexes_are_told_from_manifests():
    """Whatever the media type says, the shape decides."""
    index = Index(media_type=media.OCI_INDEX, manifests=(CONFIG,))
    assert decode(encode(index), "x") == index


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b'{"layers":[]}', b"\xff", b"{" * 5000, b'{"config":{}}',
        b'{"config":{"mediaType":"x","digest":"sha256:12","size":1}}',
        b'{"config":{"mediaType":"x","digest":"sha256:' + b"a" * 64 + b'","size":-1}}',
        b'{"config":{"mediaType":"x","digest":"sha256:' + b"a" * 64 + b'","size":"1"}}',
        b'{"manifests":[],"layers":[]}',
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(data):
    """One line names the artifact; nothing is guessed."""
    with pytest.raises(BadManifest, match="some/repo"):
        decode(data, "some/repo")


def test_limits():
    """Four MiB are the most that is looked at, two thousand layers the most that is believed."""
    with pytest.raises(LimitExceeded):
        decode(b" " * (limits.MANIFEST_BYTES + 1), "x")
    layers = tuple(Descriptor("t", CONFIG.digest, 1) for _ in range(limits.LAYERS_READ + 1))
    with pytest.raises(LimitExceeded):
        decode(encode(Manifest(config=CONFIG, layers=layers)), "x")


def test_empty_objects_of_others_are_read():
    """Docker manifests and artifacts with unknown keys decode; the unknown is ignored."""
    data = msgspec.json.encode(
        {"schemaVersion": 2, "mediaType": media.DOCKER_MANIFEST, "layers": [], "extra": {"a": [1]},
         "config": {"mediaType": "x", "digest": CONFIG.digest, "size": 2, "urls": ["u"], "data": "e30="}}
    )  # fmt: skip
    assert decode(data, "x").config.size == 2
