"""What a removal frees, and what it must not touch."""

import json
import os

import pytest

from modelpack.oci.layout import LayoutRepository
from modelpack.spec import media
from modelpack.spec.errors import NotFound, Rejected
from modelpack.spec.progress import QUIET
from tests.contract.contents import CONFIG, Watched, blob_of, put, put_image, put_index, read


@pytest.fixture
def connect(tmp_path):
    opened = []

    def make() -> LayoutRepository:
        opened.append(LayoutRepository(tmp_path / "layout"))
        return opened[-1]

    yield make
    for repository in opened:
        repository.close()


@pytest.fixture
def layout(connect):
    return connect()


@pytest.fixture
def blobs(tmp_path):
    """List the digests of all blob files."""

    def files() -> set[str]:
        return {f"sha256:{path.name}" for path in (tmp_path / "layout/blobs/sha256").iterdir()}

    return files


def digests(*data: bytes) -> set[str]:
    return {blob_of(one).digest for one in data}


def test_removed_by_digest(layout, blobs):
    """A removed manifest goes with the blobs that no other manifest names."""
    gone = put_image(layout, b"only here", b"shared", tag="v1")
    kept = put_image(layout, b"shared", tag="v2")
    layout.delete_manifest(gone.digest)
    assert blobs() == digests(b"shared", CONFIG) | {kept.digest}


def test_the_last_tag_frees(layout, blobs):
    """A manifest stays as long as a tag names it, and goes with the last one."""
    stored = put_image(layout, b"layer", tag="v1")
    put_image(layout, b"layer", tag="v2")
    layout.delete_manifest("v1")
    assert layout.manifest(stored.digest)[0] == stored
    layout.delete_manifest("v2")
    assert blobs() == set()
    with pytest.raises(NotFound):
        layout.manifest(stored.digest)


def test_an_untagged_manifest_stays(layout, blobs):
    """What a tag named before it moved is kept: somebody may have pinned its digest."""
    old = put_image(layout, b"old", tag="latest")
    put_image(layout, b"new", tag="latest")
    put_image(layout, b"other", tag="v1")
    layout.delete_manifest("v1")
    assert layout.manifest(old.digest)[0] == old
    assert digests(b"old", b"new") <= blobs()


def test_nested_indexes_keep_their_manifests(layout, blobs, tmp_path):
    """Blobs that only an index inside an index reaches are kept."""
    child = put_image(layout, b"deep")
    inner = put_index(layout, child)
    outer = put_index(layout, inner, tag="all")
    path = tmp_path / "layout/index.json"
    index = json.loads(path.read_text())
    index["manifests"] = [e for e in index["manifests"] if e["digest"] == outer.digest]
    path.write_text(json.dumps(index))
    put_image(layout, b"other", tag="v1")
    layout.delete_manifest("v1")
    assert blobs() == digests(b"deep", CONFIG) | {child.digest, inner.digest, outer.digest}
    layout.delete_manifest("all")
    assert blobs() == set()


def test_a_manifest_of_an_index_is_not_removed_alone(layout):
    """Removing by digest what an index names is refused; the index would dangle."""
    child = put_image(layout, b"amd64")
    index = put_index(layout, child, tag="all")
    with pytest.raises(Rejected, match=index.digest):
        layout.delete_manifest(child.digest)
    assert layout.manifest(child.digest)[0] == child


def test_referrers_do_not_keep_their_subject(layout, blobs):
    """A signature stays when its model is removed, and does not keep the weights."""
    model = put_image(layout, b"weights", tag="v1")
    signature = put_image(layout, b"signature", subject=model, artifact_type="example/signature")
    layout.delete_manifest(model.digest)
    assert blobs() == digests(b"signature", CONFIG) | {signature.digest}
    assert [entry.digest for entry in layout.referrers(model.digest)] == [signature.digest]


def test_unknown_manifests_keep_what_they_name(layout, blobs, tmp_path):
    """Blobs named in any field of a manifest of an unknown kind are kept."""
    put(layout, b"a blob of the future")
    kind = "application/vnd.example.manifest.v9+json"
    data = json.dumps({"parts": [{"digest": blob_of(b"a blob of the future").digest}]}).encode()
    named = put(layout, data, kind)
    path = tmp_path / "layout/index.json"
    index = json.loads(path.read_text())
    index["manifests"] += [{"mediaType": kind, "digest": named.digest, "size": named.size}]
    path.write_text(json.dumps(index))
    layout.close()
    put_image(layout, tag="v1")
    layout.delete_manifest("v1")
    assert blobs() == {named.digest} | digests(b"a blob of the future")


def test_another_push_is_not_disturbed(connect, blobs):
    """While another client is pushing, a removal frees nothing that it has put or found."""
    first, second = connect(), connect()
    put_image(first, b"old", tag="v1")
    put(second, b"put by the second")
    assert second.stat_blob(blob_of(b"old").digest) == 3
    first.delete_manifest("v1")
    assert first.tags() == []
    assert digests(b"put by the second", b"old") <= blobs()
    stored = put_image(second, b"put by the second", b"old", tag="v2")
    put_image(first, b"more", tag="v3")
    first.delete_manifest("v3")
    assert blobs() == digests(b"put by the second", b"old", CONFIG) | {stored.digest}


def test_what_another_push_has_found_stays(connect, blobs):
    """A blob that another client found, and so will not send, is not freed before it is named."""
    first, second = connect(), connect()
    put_image(first, b"layer", tag="v1")
    assert second.stat_blob(blob_of(b"layer").digest) == 5
    first.delete_manifest("v1")
    assert digests(b"layer") <= blobs()


def test_what_a_broken_push_left_is_freed(connect, blobs):
    """Blobs of a push that never came to its manifest go with the next removal."""
    broken = connect()
    put(broken, b"never named")
    broken.close()
    layout = connect()
    put_image(layout, tag="v1")
    layout.delete_manifest("v1")
    assert blobs() == set()


def test_a_damaged_manifest_stops_collection_only(layout, blobs, tmp_path):
    """While a listed manifest cannot be read nothing is freed, for nobody knows what it names."""
    damaged = put_image(layout, b"needed", tag="v1")
    put_image(layout, b"other", tag="v2")
    path = tmp_path / "layout/blobs/sha256" / damaged.digest[7:]
    good = path.read_bytes()
    path.write_bytes(good.replace(b"{", b"[", 1))
    layout.delete_manifest("v2")
    assert layout.tags() == ["v1"]
    assert digests(b"needed", b"other") <= blobs()
    path.write_bytes(good)
    put_image(layout, b"third", tag="v3")
    layout.delete_manifest("v3")
    assert blobs() == digests(b"needed", CONFIG) | {damaged.digest}


def test_files_of_others_in_blobs_stay(layout, tmp_path):
    """Only regular files named like blobs are ever removed."""
    put_image(layout, tag="v1")
    directory = tmp_path / "layout/blobs/sha256"
    (directory / "README").write_text("not a blob")
    (directory / ("0" * 64)).mkdir()
    (directory / ("1" * 64)).symlink_to("README")
    layout.delete_manifest("v1")
    left = {path.name for path in directory.iterdir()}
    assert left == {"README", "0" * 64, "1" * 64}


def test_old_partial_blobs_expire(connect, tmp_path):
    """What an interrupted put left is kept for a week, then goes with a removal."""
    layout = connect()
    for number in range(2):
        broken = Watched(bytes([number]) * 100, fail_at=50, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            layout.put_blob(broken, QUIET)
    layout.close()
    old, young = sorted((tmp_path / "layout/.modelpack/uploads").iterdir())
    os.utime(old, (0, 0))
    put_image(layout, tag="v1")
    layout.delete_manifest("v1")
    assert not old.exists()
    assert young.stat().st_size == 50


def test_a_blob_put_again_after_it_was_freed(layout):
    """What was freed is put anew, not believed to be there."""
    put_image(layout, b"layer", tag="v1")
    layout.delete_manifest("v1")
    assert layout.stat_blob(blob_of(b"layer").digest) is None
    put_image(layout, b"layer", tag="v1")
    assert read(layout, blob_of(b"layer", media.LAYER_TAR)) == b"layer"
