"""Tools of others read what we publish, byte for byte."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from modelpack.spec.index import Coding
from modelpack.spec.reference import Reference
from modelpack.verbs.push import PushOptions, push
from tests.support.servers import CRANE
from tests.support.weights import tree

INDEX = ".modelpack/index"


@pytest.fixture
def podman():
    """Run podman with storage and settings of its own."""
    # podman wants a run root of at most 50 characters.
    settings = Path(tempfile.mkdtemp(prefix="mp-", dir="/tmp"))
    (settings / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{settings}/graph"\nrunroot = "{settings}/run"\n'
    )
    (settings / "registries.conf").write_text("unqualified-search-registries = []\n")
    (settings / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (settings / "containers.conf").write_text(
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "/usr/sbin/runc"\n'
        "[containers]\n"
        'default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]\n'
    )
    environment = {
        **{key: value for key, value in os.environ.items() if key != "DOCKER_CONFIG"},
        "CONTAINERS_STORAGE_CONF": str(settings / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(settings / "registries.conf"),
        "CONTAINERS_CONF": str(settings / "containers.conf"),
    }

    def run(*arguments):
        done = subprocess.run(
            ["podman", *arguments], env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run.policy = settings / "policy.json"
    yield run
    subprocess.run(
        ["podman", "image", "umount", "--all"], env=environment, check=False, capture_output=True
    )
    shutil.rmtree(settings, ignore_errors=True)


def publish(registry, name, model, session, **options):
    reference = f"{registry.host}/{name}:v1"
    return reference, push(
        str(model), Reference.parse(reference), session(), PushOptions(**options)
    )


def without_index(found):
    assert INDEX in found
    return {path: digest for path, digest in found.items() if path != INDEX}


@pytest.mark.parametrize("platform", ["", "linux/arm64"])
def test_podman_mounts_it_read_only(platform, podman, registry, name, model, session):
    """podman pulls and mounts the artifact as an image, on any platform."""
    reference, _ = publish(registry, name, model, session)
    chosen = [f"--platform={platform}"] if platform else []
    podman(
        "pull",
        "--quiet",
        f"--signature-policy={podman.policy}",
        "--tls-verify=false",
        *chosen,
        reference,
    )
    mounted = Path(podman("image", "mount", reference))
    try:
        assert without_index(tree(mounted)) == tree(model)
    finally:
        podman("image", "umount", reference)


def test_podman_reads_compressed_layers(podman, registry, name, model, session):
    """--compression zstd is read by podman as well."""
    reference, _ = publish(registry, name, model, session, coding=Coding(codec="zstd"))
    podman(
        "pull", "--quiet", f"--signature-policy={podman.policy}", "--tls-verify=false", reference
    )
    mounted = Path(podman("image", "mount", reference))
    try:
        assert without_index(tree(mounted)) == tree(model)
    finally:
        podman("image", "umount", reference)


def test_a_container_sees_it_through_an_image_mount(
    podman, registry, name, model, session, tmp_path
):
    """`--mount type=image`, what Kubernetes calls an image volume, shows the files read-only."""
    reference, _ = publish(registry, name, model, session)
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox is missing: run `make system`"
    shutil.copy(busybox, root / "bin" / "busybox")
    subprocess.run(["tar", "cf", tmp_path / "root.tar", "-C", root, "."], check=True)
    podman("import", str(tmp_path / "root.tar"), "localhost/busybox:test")
    podman(
        "pull", "--quiet", f"--signature-policy={podman.policy}", "--tls-verify=false", reference
    )
    output = podman(
        "run", "--rm", "--network=none",
        "--mount", f"type=image,source={reference},destination=/model",
        "localhost/busybox:test", "/bin/busybox", "sh", "-c",
        "cd /model; /bin/busybox find . -type f -exec /bin/busybox sha256sum {} +; "
        "/bin/busybox touch /model/x 2>/dev/null && echo WRITABLE; true",
    )  # fmt: skip
    assert "WRITABLE" not in output
    found = {line[66:].removeprefix("./"): line[:64] for line in output.splitlines()}
    assert without_index(found) == tree(model)


def test_skopeo_and_umoci_unpack_it(registry, name, model, session, tmp_path):
    """skopeo copies it to a layout, umoci unpacks that."""
    reference, _ = publish(registry, name, model, session)
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
         f"docker://{reference}", f"oci:{tmp_path / 'layout'}:v1"],
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{tmp_path / 'layout'}:v1", tmp_path / "root"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert without_index(tree(tmp_path / "root")) == tree(model)


def test_our_layout_is_read_by_skopeo(model, session, tmp_path):
    """What push wrote to oci:DIR is a layout for everybody."""
    reference = Reference.parse(f"oci:{tmp_path / 'layout'}:v1")
    done = push(str(model), reference, session(), PushOptions())
    seen = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{tmp_path / 'layout'}:v1"],
        check=True,
        capture_output=True,
    ).stdout
    assert json.loads(seen)["layers"]
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{tmp_path / 'layout'}:v1", tmp_path / "root"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert without_index(tree(tmp_path / "root")) == tree(model)
    assert done.digest.endswith(subprocess.run(
        ["sha256sum"], input=seen, check=True, capture_output=True
    ).stdout.decode()[:64])  # fmt: skip


def test_crane_exports_it(registry, name, model, session, tmp_path):
    """crane flattens it to one tar with the same files."""
    reference, _ = publish(registry, name, model, session)
    subprocess.run([CRANE, "export", "--insecure", reference, tmp_path / "x.tar"], check=True)
    (tmp_path / "x").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "x.tar", "-C", tmp_path / "x"], check=True)
    assert without_index(tree(tmp_path / "x")) == tree(model)


def test_oras_py_pulls_it(registry, name, model, session, tmp_path):
    """oras-py fetches every layer; as tars they hold the same files."""
    import oras.client

    reference, _ = publish(registry, name, model, session)
    client = oras.client.OrasClient(hostname=registry.host, insecure=True)
    files = client.pull(target=reference, outdir=str(tmp_path / "blobs"))
    (tmp_path / "x").mkdir()
    for file in files:
        subprocess.run(["tar", "xf", file, "-C", tmp_path / "x"], check=True)
    assert without_index(tree(tmp_path / "x")) == tree(model)


def test_oras_py_pulls_the_modelpack_form(registry, name, model, session, tmp_path):
    """In the ModelPack form the layers are the files, under their names."""
    import oras.client

    reference, _ = publish(registry, name, model, session, modelpack_form=True)
    client = oras.client.OrasClient(hostname=registry.host, insecure=True)
    client.pull(target=reference, outdir=str(tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(model)
