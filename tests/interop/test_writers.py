"""What tools of others publish is pulled by us, byte for byte."""

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import msgspec
import pytest
import zstandard

from modelpack.oci.remote import RemoteRepository
from modelpack.spec import media
from modelpack.spec.errors import Unsupported
from modelpack.spec.manifest import Descriptor, Index, Manifest, Platform, describe, encode
from modelpack.spec.progress import QUIET
from modelpack.spec.reference import Reference
from modelpack.spec.source import Bytes
from modelpack.verbs.pull import PullOptions, pull
from modelpack.verbs.push import PushOptions, push
from tests.conftest import fast
from tests.support.weights import tree


@pytest.fixture
def repository(registry, name):
    opened = RemoteRepository(registry.host, name, fast())
    yield opened
    opened.close()


@pytest.fixture
def reference(registry, name):
    return Reference.parse(f"{registry.host}/{name}:v1")


def put(repository, data, media_type, **annotations):
    blob = describe(media_type, data)
    repository.put_blob(Bytes(blob, data), QUIET)
    return msgspec.structs.replace(blob, annotations=annotations or None)


def tarred(directory, paths):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path in paths:
            tar.add(directory / path, arcname=path)
    return stream.getvalue()


def paths_of(model):
    return sorted(str(p.relative_to(model)) for p in model.rglob("*") if p.is_file())


COMPRESSIONS = {
    "tar": lambda data: data,
    "tar+gzip": gzip.compress,
    "tar+zstd": zstandard.ZstdCompressor().compress,
    "tar+zstd frames": lambda data: b"".join(
        zstandard.ZstdCompressor().compress(data[at : at + 100_000])
        for at in range(0, len(data), 100_000)
    ) + b"\x50\x2a\x4d\x18\x04\x00\x00\x00tail",
}  # fmt: skip


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_plain_images(compression, repository, reference, model, tmp_path, session):
    """Layers of any compression, several files each, apply in order."""
    paths = paths_of(model)
    kind = f"application/vnd.oci.image.layer.v1.{compression.split(' ')[0]}"
    layers = tuple(
        put(repository, COMPRESSIONS[compression](tarred(model, part)), kind)
        for part in (paths[:2], paths[2:])
    )
    config = put(repository, b'{"architecture":"amd64","os":"linux"}', media.OCI_CONFIG)
    data = encode(Manifest(media_type=media.OCI_MANIFEST, config=config, layers=layers))
    repository.put_manifest(data, media.OCI_MANIFEST, "v1")
    done = pull(reference, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == tree(model)
    assert done.bytes_moved > 0


@pytest.mark.parametrize("prefix", ["org.cncf.model", "org.cnai.model"])
def test_modelpack_by_hand(prefix, repository, reference, model, tmp_path, session):
    """Raw and tar layers, under the present and the old names."""
    domain = "cncf" if "cncf" in prefix else "cnai"
    paths = paths_of(model)
    layers = [
        put(repository, (model / path).read_bytes(), f"application/vnd.{domain}.model.weight.v1.raw",
            **{f"{prefix}.filepath": path})
        for path in paths[:-2]
    ]  # fmt: skip
    layers.append(
        put(repository, tarred(model, paths[-2:]), f"application/vnd.{domain}.model.weight.config.v1.tar",
            **{f"{prefix}.filepath": "rest"})
    )  # fmt: skip
    config = put(repository, b"{}", f"application/vnd.{domain}.model.config.v1+json")
    manifest = Manifest(
        media_type=media.OCI_MANIFEST, config=config, layers=tuple(layers),
        artifact_type=f"application/vnd.{domain}.model.manifest.v1+json",
    )  # fmt: skip
    repository.put_manifest(encode(manifest), media.OCI_MANIFEST, "v1")
    pull(reference, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == tree(model)


def test_the_golden_modelpack_of_the_specification(repository, reference, tmp_path, session):
    """The byte-exact minimal artifact that modctl and modelpack-client read."""
    config = (
        b'{"descriptor":{"name":"tiny"},"modelfs":{"type":"layers","diffIds":["sha256:5891b5b522d5df08'
        b'6d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"]},"config":{}}'
    )
    put(repository, config, media.MODEL_CONFIG)
    put(repository, b"hello\n", "application/vnd.cncf.model.weight.v1.raw")
    manifest = (
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":'
        b'"application/vnd.cncf.model.manifest.v1+json","config":{"mediaType":"application/vnd.cncf.'
        b'model.config.v1+json","digest":"sha256:de92be898614a56f313d88b07c3010367cb3803cf52a0e511f2b0'
        b'88bd603bcf8","size":156},"layers":[{"mediaType":"application/vnd.cncf.model.weight.v1.raw",'
        b'"digest":"sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03","size":6,'
        b'"annotations":{"org.cncf.model.file.metadata+json":"{\\"name\\":\\"model.bin\\",\\"mode\\":420'
        b',\\"uid\\":0,\\"gid\\":0,\\"size\\":6,\\"mtime\\":\\"1970-01-01T00:00:00Z\\",\\"typeflag\\":0}"'
        b',"org.cncf.model.filepath":"model.bin"}}]}'
    )
    stored = repository.put_manifest(manifest, media.OCI_MANIFEST, "v1")
    assert (
        stored.digest == "sha256:43239576c7ba6c49fab7e35c4cfc87aa433906a1a6f6d12df9905fc09f89e62a"
    )
    pull(reference, tmp_path / "out", session(), PullOptions())
    assert (tmp_path / "out" / "model.bin").read_bytes() == b"hello\n"


def test_kitops_modelkits(repository, reference, model, tmp_path, session):
    """A ModelKit's tars are unpacked, its Kitfile comes along."""
    paths = paths_of(model)
    layers = (
        put(repository, tarred(model, paths[:3]), "application/vnd.kitops.modelkit.model.v1.tar"),
        put(
            repository,
            gzip.compress(tarred(model, paths[3:])),
            "application/vnd.kitops.modelkit.docs.v1.tar+gzip",
        ),
    )
    config = put(
        repository, b'{"manifestVersion":"1.0.0"}', "application/vnd.kitops.modelkit.config.v1+json"
    )
    data = encode(Manifest(media_type=media.OCI_MANIFEST, config=config, layers=layers))
    repository.put_manifest(data, media.OCI_MANIFEST, "v1")
    pull(reference, tmp_path / "out", session(), PullOptions())
    found = tree(tmp_path / "out")
    assert found.pop("Kitfile")
    assert found == tree(model)


def test_oras_py_artifacts(registry, name, reference, model, tmp_path, session, monkeypatch):
    """What oras-py pushed: files under their titles, directories as archives."""
    import oras.client

    monkeypatch.chdir(model)
    files = ["config.json", "model-00001-of-00002.safetensors", "Ünï cøde"]
    client = oras.client.OrasClient(hostname=registry.host, insecure=True)
    client.push(target=f"{registry.host}/{name}:v1", files=files, disable_path_validation=True)
    pull(reference, tmp_path / "out", session(), PullOptions())
    expected = {p: d for p, d in tree(model).items() if p in files or p.startswith("Ünï")}
    assert tree(tmp_path / "out") == expected


def test_buildah_images(registry, name, reference, model, tmp_path, session, request):
    """An image that buildah built FROM scratch, gzipped as it pushes."""
    storage = Path(tempfile.mkdtemp(prefix="mp-", dir="/tmp"))  # at most 50 characters
    request.addfinalizer(lambda: shutil.rmtree(storage, ignore_errors=True))
    environment = {
        **{key: value for key, value in os.environ.items() if key != "DOCKER_CONFIG"},
        "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs",
        "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"),
    }  # fmt: skip
    (tmp_path / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{storage}/g"\nrunroot = "{storage}/r"\n'
    )
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def buildah(*arguments):
        done = subprocess.run(
            ["buildah", *arguments], env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    container = buildah("from", "scratch")
    buildah("copy", container, str(model), "/models")
    buildah("commit", "--quiet", f"--signature-policy={tmp_path}/policy.json", container, "m")
    buildah(
        "push", f"--signature-policy={tmp_path}/policy.json", "--tls-verify=false", "m",
        f"docker://{registry.host}/{name}:v1",
    )  # fmt: skip
    pull(reference, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out" / "models") == tree(model)


def test_a_copy_that_was_recompressed(registry, name, model, tmp_path, session):
    """`skopeo copy` gzips plain layers: the index no longer speaks of them, the files still come."""
    source = f"{registry.host}/{name}:v1"
    push(str(model), Reference.parse(source), session(), PushOptions())
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
         "--dest-tls-verify=false", "--dest-compress", "--dest-compress-format", "gzip",
         f"docker://{source}", f"dir:{tmp_path / 'dir'}"],
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false",
         f"dir:{tmp_path / 'dir'}", f"docker://{registry.host}/{name}-gz:v1"],
        check=True, capture_output=True,
    )  # fmt: skip
    done = pull(
        Reference.parse(f"{registry.host}/{name}-gz:v1"), tmp_path / "out", session(), PullOptions()
    )
    assert tree(tmp_path / "out") == tree(model)
    assert done.chunks == 0


def test_image_indexes(repository, reference, model, tmp_path, session):
    """An index picks by platform, or says what it found."""
    config = put(repository, b"{}", media.OCI_CONFIG)
    layer = put(repository, tarred(model, ["config.json"]), media.LAYER_TAR)
    entries = []
    for architecture in ("s390x", "riscv64"):
        data = encode(Manifest(media_type=media.OCI_MANIFEST, config=config, layers=(layer,),
                               annotations={"for": architecture}))  # fmt: skip
        stored = repository.put_manifest(data, media.OCI_MANIFEST)
        entries.append(Descriptor(stored.media_type, stored.digest, stored.size,
                                  platform=Platform(architecture, "linux")))  # fmt: skip
    index = encode(Index(media_type=media.OCI_INDEX, manifests=tuple(entries)))
    repository.put_manifest(index, media.OCI_INDEX, "v1")
    with pytest.raises(Unsupported, match="linux/riscv64, linux/s390x"):
        pull(reference, tmp_path / "out", session(), PullOptions())
    pull(reference, tmp_path / "out", session(), PullOptions(platform="linux/riscv64"))
    assert sorted(tree(tmp_path / "out")) == ["config.json"]
