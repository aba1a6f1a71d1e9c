"""Other programs read what we write into a layout, and we read what they write."""

import json
import os
import shutil
import subprocess
import tempfile

import pytest

from modelpack.oci.layout import LayoutRepository
from modelpack.spec import media
from modelpack.spec.errors import Rejected
from modelpack.spec.manifest import describe
from tests.contract.contents import image, put, put_image, put_index, read
from tests.support.archives import END, file
from tests.support.servers import CRANE

TAR = file("model.safetensors", b"weights" * 1000) + END


def run(*command, **options) -> str:
    done = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def layout(tmp_path):
    repository = LayoutRepository(tmp_path / "layout")
    yield repository
    repository.close()


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "layout"


def put_container(repository, tag: str, note: str = "", **fields):
    """Publish an image that container engines accept."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [describe("", TAR).digest]},
            "config": {"Labels": {"note": note}},
        }
    ).encode()
    named = put(repository, config, media.OCI_CONFIG)
    layer = put(repository, TAR, media.LAYER_TAR)
    return repository.put_manifest(image([layer], config=named, **fields), media.OCI_MANIFEST, tag)


def test_skopeo_reads(layout, directory, tmp_path):
    """Skopeo inspects and copies a tag of our layout, and finds the same digest."""
    stored = put_container(layout, "v1")
    seen = json.loads(run("skopeo", "inspect", f"oci:{directory}:v1"))
    assert seen["Digest"] == stored.digest
    run(
        "skopeo", "copy", "--preserve-digests", f"oci:{directory}:v1", f"oci:{tmp_path / 'copy'}:v1"
    )
    theirs = LayoutRepository(tmp_path / "copy")
    assert theirs.manifest("v1") == layout.manifest("v1")
    assert read(theirs, describe(media.LAYER_TAR, TAR)) == TAR


def test_skopeo_writes_beside_us(layout, directory, tmp_path):
    """Skopeo and we add tags to one layout in turn, and every tag stays."""
    put_container(layout, "ours", "1")
    other = LayoutRepository(tmp_path / "other")
    theirs = put_container(other, "theirs", "2")
    run(
        "skopeo",
        "copy",
        "--preserve-digests",
        f"oci:{tmp_path / 'other'}:theirs",
        f"oci:{directory}:theirs",
    )
    put_container(layout, "again", "3")
    assert layout.tags() == ["again", "ours", "theirs"]
    assert layout.manifest("theirs")[0] == theirs
    run("skopeo", "inspect", f"oci:{directory}:ours")
    layout.delete_manifest("theirs")
    assert layout.tags() == ["again", "ours"]
    other.close()


def test_umoci_lists_and_unpacks(layout, directory, tmp_path):
    """Umoci lists our tags, tags one of our images itself, and unpacks it."""
    put_container(layout, "v1")
    run("umoci", "tag", "--image", f"{directory}:v1", "v2")
    assert run("umoci", "list", "--layout", directory).split() == ["v1", "v2"]
    assert layout.tags() == ["v1", "v2"]
    run("umoci", "unpack", "--rootless", "--image", f"{directory}:v2", tmp_path / "bundle")
    unpacked = tmp_path / "bundle/rootfs/model.safetensors"
    assert unpacked.read_bytes() == b"weights" * 1000


def test_umoci_collects_no_blob_of_ours(layout, directory):
    """Umoci's garbage collection keeps all that our index names, and our private directory."""
    stored = put_container(layout, "v1")
    put(layout, b"unreferenced")
    run("umoci", "gc", "--layout", directory)
    assert layout.stat_blob(describe("", b"unreferenced").digest) is None
    assert layout.manifest("v1")[0] == stored
    assert read(layout, describe(media.LAYER_TAR, TAR)) == TAR


def test_a_layout_of_umoci(tmp_path):
    """A layout that umoci made is read, and written to, like one of ours."""
    directory = tmp_path / "umoci"
    run("umoci", "init", "--layout", directory)
    run("umoci", "new", "--image", f"{directory}:empty")
    repository = LayoutRepository(directory)
    assert repository.tags() == ["empty"]
    repository.manifest("empty")
    put_container(repository, "ours")
    assert run("umoci", "list", "--layout", directory).split() == ["empty", "ours"]
    repository.close()


def test_podman_pulls(layout, directory, tmp_path):
    """Podman pulls a tag of our layout into its storage."""
    put_container(layout, "v1")
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    with tempfile.TemporaryDirectory() as short:  # podman takes 50 characters at most
        options = [
            f"--root={short}/root", f"--runroot={short}/run", "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs", "--events-backend=none",
        ]  # fmt: skip
        pull = ["pull", "--quiet", f"--signature-policy={policy}", f"oci:{directory}:v1"]
        environment = {key: os.environ[key] for key in os.environ if key != "DOCKER_CONFIG"}
        image_id = run("podman", *options, *pull, env={**environment, "TMPDIR": short}).strip()
    config = json.loads(layout.manifest("v1")[1])["config"]["digest"]
    assert config == f"sha256:{image_id}"


def test_crane_pushes(layout, directory, crane_registry, name):
    """Crane pushes our layout to a registry, digest preserved."""
    stored = put_container(layout, "v1")
    # It reads .modelpack/ no more than we read it here: everything it needs is of the standard.
    shutil.rmtree(directory / ".modelpack")
    run(CRANE, "push", directory, f"{crane_registry.host}/{name}:v1")
    assert run(CRANE, "digest", f"{crane_registry.host}/{name}:v1").strip() == stored.digest


def test_fields_of_others_stay(layout, directory):
    """Fields of index.json that we do not know survive our changes."""
    first = put_container(layout, "v1")
    path = directory / "index.json"
    index = json.loads(path.read_text())
    index["annotations"] = {"made": "elsewhere"}
    index["manifests"][0]["platform"] = {
        "os": "linux",
        "architecture": "amd64",
        "os.features": ["x"],
    }
    index["manifests"][0]["annotations"]["io.containerd.image.name"] = "example/model:v1"
    path.write_text(json.dumps(index))
    put_container(layout, "v2", "other")
    put_container(layout, "v1", "moved")
    after = json.loads(path.read_text())
    assert after["annotations"] == {"made": "elsewhere"}
    old = next(entry for entry in after["manifests"] if entry["digest"] == first.digest)
    assert old["platform"]["os.features"] == ["x"]
    assert old["annotations"] == {"io.containerd.image.name": "example/model:v1"}


def test_untagged_manifests_of_others(layout, directory, tmp_path):
    """A layout without tags is read by digest, and the error for a tag tells the digests."""
    stored = put_container(layout, "v1")
    run("skopeo", "copy", "--preserve-digests", f"oci:{directory}:v1", f"oci:{tmp_path / 'copy'}")
    theirs = LayoutRepository(tmp_path / "copy")
    assert theirs.tags() == []
    assert theirs.manifest(stored.digest)[0] == stored
    with pytest.raises(Exception, match="no such manifest") as caught:
        theirs.manifest("latest")
    assert stored.digest in caught.value.hint


def test_names_that_are_no_tags(layout, directory):
    """Whole references as names (buildah writes them) are kept but are no tags."""
    stored = put_container(layout, "v1")
    path = directory / "index.json"
    path.write_text(path.read_text().replace('"v1"', '"localhost/model:v1"'))
    assert layout.tags() == []
    assert layout.manifest(stored.digest)[0] == stored
    put_container(layout, "v2")
    assert layout.tags() == ["v2"]
    assert '"localhost/model:v1"' in path.read_text()


def test_a_tag_given_twice(layout, directory):
    """Two manifests of one name (docker save writes them) are refused by name, read by digest."""
    one, two = put_container(layout, "one", "1"), put_container(layout, "two", "2")
    path = directory / "index.json"
    path.write_text(path.read_text().replace('"one"', '"two"'))
    assert layout.tags() == ["two"]
    with pytest.raises(Rejected, match="names 2 manifests"):
        layout.manifest("two")
    assert layout.manifest(one.digest)[0] == one
    put_container(layout, "two", "2")
    assert layout.manifest("two")[0] == two


def test_children_that_only_an_index_names(layout, directory):
    """Manifests that index.json does not list are found through the indexes that name them."""
    children = [put_image(layout, layer) for layer in (b"amd64", b"arm64")]
    inner = put_index(layout, children[0])
    outer = put_index(layout, inner, children[1], tag="all")
    path = directory / "index.json"
    index = json.loads(path.read_text())
    index["manifests"] = [entry for entry in index["manifests"] if entry["digest"] == outer.digest]
    path.write_text(json.dumps(index))
    assert [layout.manifest(child.digest)[0] for child in (*children, inner)] == [*children, inner]


def test_a_referrer_in_a_fallback_tag(layout, directory):
    """Referrers that only the index of a fallback tag names are found too."""
    model = put_image(layout, b"weights", tag="v1")
    signature = put_image(layout, subject=model, artifact_type="example/signature")
    put_index(layout, signature, tag=model.digest.replace(":", "-"))
    path = directory / "index.json"
    index = json.loads(path.read_text())
    index["manifests"] = [e for e in index["manifests"] if e["digest"] != signature.digest]
    path.write_text(json.dumps(index))
    found = layout.referrers(model.digest, "example/signature")
    assert [entry.digest for entry in found] == [signature.digest]
