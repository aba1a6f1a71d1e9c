"""Artifacts that lie: each ends in one clear line and an untouched target."""

import io
import tarfile

import msgspec
import pytest

from modelpack.oci.layout import LayoutRepository
from modelpack.spec import media, names
from modelpack.spec.errors import ArtifactError, IntegrityError, ModelpackError
from modelpack.spec.index import FileEntry, decode
from modelpack.spec.manifest import Descriptor, Manifest, describe, encode
from modelpack.spec.manifest import decode as decode_manifest
from modelpack.spec.progress import QUIET
from modelpack.spec.reference import Reference
from modelpack.spec.source import Bytes
from modelpack.spec.tarrule import literals
from modelpack.verbs.pull import PullOptions, pull
from modelpack.verbs.push import PushOptions, push
from tests.support.weights import tree


@pytest.fixture
def layout(tmp_path):
    opened = LayoutRepository(tmp_path / "layout")
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path):
    """Where the layout keeps its blobs, to damage them."""
    return tmp_path / "layout" / "blobs" / "sha256"


@pytest.fixture
def reference(tmp_path):
    return Reference.parse(f"oci:{tmp_path / 'layout'}:v1")


@pytest.fixture
def out(tmp_path):
    """A target with a file of the user, and a place that must stay as it is."""
    directory = tmp_path / "target" / "out"
    directory.mkdir(parents=True)
    (directory / "mine").write_text("mine")
    return directory


def put(layout, data, media_type=media.LAYER_TAR, **annotations):
    blob = describe(media_type, data)
    layout.put_blob(Bytes(blob, data), QUIET)
    return msgspec.structs.replace(blob, annotations=annotations or None)


def publish(layout, *layers, config=media.OCI_CONFIG, artifact_type=""):
    manifest = Manifest(
        media_type=media.OCI_MANIFEST, config=put(layout, b"{}", config), layers=layers,
        artifact_type=artifact_type,
    )  # fmt: skip
    layout.put_manifest(encode(manifest), media.OCI_MANIFEST, "v1")


def untouched(out, tmp_path):
    assert tree(out) == {"mine": tree(out)["mine"]}
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "target" / "evil").exists()


def member(name, kind=tarfile.REGTYPE, data=b"", **changes):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def archive(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


TARS = {
    "parent": [member("../evil", data=b"x")],
    "parents": [member("a/../../evil", data=b"x")],
    "absolute": [member("/tmp/evil", data=b"x")],
    "symlink out": [member("evil", tarfile.SYMTYPE, linkname="../../evil")],
    "through a symlink": [member("l", tarfile.SYMTYPE, linkname="."), member("l/evil", data=b"x")],
    "hard link out": [member("evil", tarfile.LNKTYPE, linkname="../../../etc/passwd")],
    "hard link to nothing": [member("evil", tarfile.LNKTYPE, linkname="missing")],
    "device": [member("evil", tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "fifo": [member("evil", tarfile.FIFOTYPE)],
    "ten thousand levels": [member("d/" * 10_000 + "x", data=b"x")],
}


@pytest.mark.parametrize("trick", TARS)
def test_hostile_tars(trick, layout, reference, out, tmp_path, session):
    """No trick of a tar creates anything, inside or outside of the target."""
    publish(layout, put(layout, archive(member("fine", data=b"fine"), *TARS[trick])))
    with pytest.raises(ArtifactError) as caught:
        pull(reference, out, session(), PullOptions())
    assert "\n" not in str(caught.value)
    untouched(out, tmp_path)


def test_tar_bombs(layout, reference, out, tmp_path, session):
    """A megabyte that expands to gigabytes is stopped."""
    import zlib

    packer = zlib.compressobj(9, wbits=31)
    info = tarfile.TarInfo("zeros")
    info.size = 40 << 30
    bomb = packer.compress(info.tobuf())
    zeros = bytes(1 << 20)
    bomb += b"".join(packer.compress(zeros) for _ in range(400)) + packer.flush(zlib.Z_FULL_FLUSH)
    publish(layout, put(layout, bomb, f"{media.LAYER_TAR}+gzip"))
    with pytest.raises(ModelpackError):
        pull(reference, out, session(), PullOptions())
    untouched(out, tmp_path)


@pytest.mark.parametrize(
    "path", ["../evil", "/evil", "a/../../evil", "", ".", "a//b", "x/" * 100 + "y"]
)
def test_hostile_titles(path, layout, reference, out, tmp_path, session):
    """Raw layers name their files in annotations, which are checked as well."""
    raw = "application/vnd.cncf.model.weight.v1.raw"
    layer = put(layout, b"x", raw, **{"org.cncf.model.filepath": path})
    publish(layout, layer, config=media.MODEL_CONFIG, artifact_type=media.MODEL_MANIFEST)
    with pytest.raises(ArtifactError):
        pull(reference, out, session(), PullOptions())
    untouched(out, tmp_path)


def tamper(layout, blobs, change):
    """Rebuild an artifact of ours around a changed chunk index."""
    _, data = layout.manifest("v1")
    manifest = decode_manifest(data, "x")
    blob = manifest.layers[-1]
    raw = (blobs / blob.digest[7:]).read_bytes()
    payload = raw[512 : 512 + int(raw[124:135], 8)]
    changed = change(payload)
    before, after = literals([(names.INDEX_PATH, len(changed))])
    layer = put(layout, before + changed + after, **(blob.annotations or {}))
    again = msgspec.structs.replace(manifest, layers=(*manifest.layers[:-1], layer))
    layout.put_manifest(encode(again), media.OCI_MANIFEST, "v1")


def header_with(payload, edit):
    index = decode(payload)
    index.header = edit(index.header)
    return index.encode()


def renamed(path):
    def edit(header):
        layer = header.layers[0]
        file = layer.files[0]
        files = (FileEntry(path, file.size, file.chunks), *layer.files[1:])
        layers = (msgspec.structs.replace(layer, files=files), *header.layers[1:])
        return msgspec.structs.replace(header, layers=layers)

    return lambda payload: header_with(payload, edit)


LIES = {
    "path out": renamed("../evil.safetensors"),
    "absolute path": renamed("/evil.safetensors"),
    "the same path twice": renamed("config.json"),
    "wrong digests": lambda payload: payload[:-32] + bytes(32),
    "swapped digests": lambda payload: payload[:-64] + payload[-32:] + payload[-64:-32],
    "no table": lambda payload: payload[: 16 + int.from_bytes(payload[12:16], "little")],
    "half a table": lambda payload: payload[:-7],
    "not an index": lambda payload: b"hello world, this is a text" * 50,
    "huge header": lambda payload: payload[:12] + b"\xff\xff\xff\x7f" + payload[16:],
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_indexes(lie, layout, blobs, reference, model, out, tmp_path, session):
    """An index that was changed, and signed for by the manifest, is found out."""
    push(str(model), reference, session(), PushOptions())
    tamper(layout, blobs, LIES[lie])
    with pytest.raises((ArtifactError, IntegrityError)) as caught:
        pull(reference, out, session(), PullOptions())
    assert "\n" not in str(caught.value)
    assert tree(out) == {"mine": tree(out)["mine"]}


def test_flipped_bits_in_the_registry(own_registry, name, model, out, tmp_path, session):
    """A bit that rotted in the registry's storage is named with its chunk; the target is untouched;
    what was right is kept, so that after a repair little is fetched."""
    reference = Reference.parse(f"{own_registry.host}/{name}:v1")
    push(str(model), reference, session(), PushOptions())
    from modelpack.oci.remote import RemoteRepository
    from tests.conftest import fast

    repository = RemoteRepository(own_registry.host, name, fast())
    layers = decode_manifest(repository.manifest("v1")[1], "x").layers
    repository.close()
    own_registry.flip_bit(layers[0].digest, 5_000_000)
    with pytest.raises(IntegrityError, match=r"chunk \d+ .*expected blake3:.* from 127") as caught:
        pull(reference, out, session(), PullOptions())
    assert "push" in caught.value.hint
    assert tree(out) == {"mine": tree(out)["mine"]}
    own_registry.flip_bit(layers[0].digest, 5_000_000)
    again = pull(reference, out, session(), PullOptions())
    assert again.bytes_moved < again.bytes_total / 2
    (out / "mine").unlink()
    assert tree(out) == tree(model)
    own_registry.truncate(layers[1].digest, 1_000_000)
    with pytest.raises(ModelpackError):
        pull(reference, tmp_path / "third", session(), PullOptions())
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("compression", ["", "+gzip", "+zstd"])
def test_flipped_bits_in_layers_without_index(
    compression, layout, blobs, reference, out, tmp_path, session
):
    """Without an index the layer's SHA-256 finds it."""
    data = archive(member("a", data=b"content" * 10_000))
    layer = put(layout, data, media.LAYER_TAR + compression)
    publish(layout, layer)
    path = blobs / layer.digest[7:]
    broken = bytearray(data)
    broken[2000] ^= 1
    path.chmod(0o644)
    path.write_bytes(broken)
    with pytest.raises(IntegrityError, match="layer sha256"):
        pull(reference, out, session(), PullOptions())
    assert tree(out) == {"mine": tree(out)["mine"]}


def test_an_index_beside_that_lies_changes_nothing(
    layout, blobs, reference, model, tmp_path, session
):
    """Anybody who may push can put an index beside a ModelPack: it is believed for nothing."""
    push(str(model), reference, session(), PushOptions(modelpack_form=True))
    subject = layout.manifest("v1")[0]
    (beside,) = layout.referrers(subject.digest, names.INDEX_ARTIFACT_TYPE)
    manifest = decode_manifest(layout.manifest(beside.digest)[1], "x")
    blob = manifest.layers[0]
    payload = (blobs / blob.digest[7:]).read_bytes()
    index = decode(payload)
    # Two equal-sized chunks exchange their digests: every chunk is "right", the file is not.
    lengths = list(index.lengths)
    first = lengths.index(max(lengths))
    table = bytearray(payload)
    start = len(payload) - 32 * len(lengths) + 32 * first
    table[start : start + 32] = bytes(32)
    lie = put(layout, bytes(table), names.INDEX_ARTIFACT_TYPE)
    again = msgspec.structs.replace(manifest, layers=(lie,))
    layout.delete_manifest(beside.digest)
    put(layout, b"{}", media.OCI_EMPTY)
    layout.put_manifest(encode(again), media.OCI_MANIFEST)
    pull(reference, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == tree(model)


def test_what_is_no_model_is_named(layout, reference, out, session):
    """Signatures and charts are refused by name."""
    layer = put(layout, b"x", "application/vnd.dev.cosign.simplesigning.v1+json")
    publish(layout, layer)
    with pytest.raises(ArtifactError, match="signature"):
        pull(reference, out, session(), PullOptions())


def test_sizes_beyond_the_disk(layout, blobs, reference, out, tmp_path, session):
    """A layer that claims a petabyte is refused before a byte is written."""
    layer = put(layout, b"x" * 100)
    huge = Descriptor(layer.media_type, layer.digest, 1 << 50)
    data = encode(Manifest(media_type=media.OCI_MANIFEST, config=put(layout, b"{}", media.OCI_CONFIG),
                           layers=(huge,)))  # fmt: skip
    (blobs / describe("t", data).digest[7:]).write_bytes(data)
    pinned = Reference.parse(f"oci:{blobs.parents[1]}@{describe('t', data).digest}")
    with pytest.raises(ModelpackError):
        pull(pinned, out, session(), PullOptions())
    untouched(out, tmp_path)
