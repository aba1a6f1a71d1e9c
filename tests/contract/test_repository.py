"""The sentences of spec.registry.Repository and spec.source, checked on every backend."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from modelpack.oci import upload
from modelpack.spec import limits, media
from modelpack.spec.digest import Digest
from modelpack.spec.errors import (
    BadSource,
    DiskError,
    IntegrityError,
    ModelpackError,
    NotFound,
    ProtocolViolation,
    Rejected,
)
from modelpack.spec.manifest import decode
from modelpack.spec.progress import QUIET
from modelpack.spec.source import Bytes
from tests.contract.contents import (
    CONFIG,
    MIB,
    Watched,
    blob_of,
    image,
    moved_by_putting,
    put,
    put_image,
    put_index,
    read,
)

ABSENT = str(Digest.of(b"nobody has published this"))


def test_a_blob_comes_back(repository):
    """What was put is there with its size, and is read as it was."""
    blob = put(repository, b"some weights")
    assert repository.stat_blob(blob.digest) == 12
    assert read(repository, blob) == b"some weights"


def test_an_absent_blob_has_no_size(repository):
    """A blob that was never put has no size; with neighbours and in an empty repository."""
    assert repository.stat_blob(ABSENT) is None
    put(repository, b"another")
    assert repository.stat_blob(ABSENT) is None


def test_an_absent_blob_cannot_be_read(repository):
    """Reading a blob that is not there raises NotFound."""
    put_image(repository, tag="v1")
    with pytest.raises(NotFound), repository.open(blob_of(b"absent"), 0, 6):
        pass


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (0, 7), (3 * MIB - 1, 1), (1_500_000, 100_001), (MIB - 1, MIB + 2), (0, 3 * MIB)],
)
def test_any_range_can_be_read(repository, offset, length, large):
    """First byte, last byte, middle, across buffers, whole: exactly the range arrives."""
    data = large[: 3 * MIB]
    assert read(repository, put(repository, data), offset, length) == data[offset:][:length]


@pytest.mark.parametrize("size", [1, 1000, 4 * MIB])
def test_reads_of_any_size_add_up(repository, size, large):
    """A stream gives at most what it is asked for, and at least a byte until its end."""
    data = large[:5000] if size < 100 else large[: 3 * MIB]
    assert read(repository, put(repository, data), 3, size=size) == data[3:]


@pytest.mark.parametrize(("offset", "length"), [(90, 11), (100, 1), (1000, 5)])
def test_a_range_beyond_the_end_is_refused(repository, offset, length):
    """A range that the blob does not have raises ProtocolViolation instead of coming short."""
    blob = put(repository, bytes(range(100)))
    with pytest.raises(ProtocolViolation):
        read(repository, blob, offset, length)


def test_a_blob_of_another_size_than_told_is_refused(repository):
    """A descriptor whose size is not that of the blob raises ProtocolViolation."""
    blob = put(repository, b"x" * 100)
    wrong = type(blob)(blob.media_type, blob.digest, 120)
    with pytest.raises(ProtocolViolation):
        read(repository, wrong, 0, 120)


def test_an_empty_blob_is_a_blob(repository):
    """A blob of no bytes is stored, and can be named by a manifest."""
    blob = put(repository, b"")
    assert repository.stat_blob(blob.digest) == 0
    put(repository, CONFIG)
    repository.put_manifest(image([blob]), media.OCI_MANIFEST, "v1")


def test_a_large_blob_comes_back(repository, large):
    """A blob of 20 MiB is put, and every byte of it is told to the progress."""
    assert moved_by_putting(repository, Watched(large)) == len(large)
    assert read(repository, blob_of(large)) == large


def test_bytes_with_another_digest_are_refused(repository):
    """Content that does not have its digest raises IntegrityError and is not stored."""
    content = Watched(b"what was digested", told=b"what was digestee")
    with pytest.raises(IntegrityError):
        repository.put_blob(content, QUIET)
    assert repository.stat_blob(content.blob.digest) is None


def test_content_that_ends_early_is_refused(repository, large):
    """Content shorter than announced is refused and is not stored; the right one is."""
    content = Watched(large[: 5 * MIB], told=large[: 5 * MIB - 3])
    with pytest.raises(ModelpackError):
        repository.put_blob(content, QUIET)
    assert repository.stat_blob(content.blob.digest) is None
    put(repository, large[: 5 * MIB])
    assert read(repository, content.blob) == large[: 5 * MIB]


def test_content_that_does_not_end_is_cut_or_refused(repository, large):
    """Of content longer than announced nothing is stored but the blob that was announced."""
    content = Watched(large[: 5 * MIB], told=large[: 5 * MIB + 3])
    with suppress(IntegrityError):
        repository.put_blob(content, QUIET)
    if repository.stat_blob(content.blob.digest) is not None:
        assert read(repository, content.blob) == large[: 5 * MIB]


def test_content_that_changed_leaves_nothing(repository, large):
    """A source that reports a change half-way raises that error; later the blob can be put."""
    error = BadSource("model.gguf: changed")
    content = Watched(large[: 6 * MIB], fail_at=3 * MIB, error=error)
    with pytest.raises(BadSource):
        repository.put_blob(content, QUIET)
    assert repository.stat_blob(content.blob.digest) is None
    put(repository, large[: 6 * MIB])
    assert read(repository, content.blob) == large[: 6 * MIB]


def test_an_interrupted_put_is_continued(backend, large, monkeypatch):
    """After an interruption the next client asks the content only for what is missing."""
    # docker-registry forgets the whole upload if a request breaks off half-way, not between two.
    monkeypatch.setattr(upload, "CHUNK", 4 * MIB)
    interrupted = Watched(large, fail_at=12 * MIB, error=DiskError("the source broke"))
    with pytest.raises(DiskError):
        backend.again().put_blob(interrupted, QUIET)
    repository = backend.again()
    assert repository.stat_blob(interrupted.blob.digest) is None
    content = Watched(large)
    moved = moved_by_putting(repository, content)
    assert read(repository, content.blob) == large
    assert moved == len(large) - content.offsets[0]
    if backend.ours:
        assert content.offsets == [12 * MIB]
    elif backend.kind == "distribution":
        assert content.offsets[0] == 12 * MIB


def test_a_blob_that_is_there_is_cheap(backend, repository, large):
    """Our own registries do not read content that they have; the others may be asked before."""
    put(repository, large[: 5 * MIB])
    content = Watched(large[: 5 * MIB])
    moved = moved_by_putting(repository, content)
    assert repository.stat_blob(content.blob.digest) == 5 * MIB
    if backend.ours:
        assert (moved, content.offsets) == (0, [])


def test_many_threads_put_one_blob(repository, large):
    """Eight threads that put the same blob all succeed, and it is whole."""
    data = large[: 6 * MIB]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: put(repository, data), range(8)))
    assert read(repository, blob_of(data)) == data


def test_many_threads_put_many_blobs(repository, large):
    """Eight threads that put and read different blobs do not disturb each other."""

    def round_trip(number: int) -> bool:
        data = large[number * 1000 :][: 2 * MIB + number]
        return read(repository, put(repository, data), number) == data[number:]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, range(16)))


def test_many_threads_tag(repository):
    """Manifests put by eight threads at once all get their tags."""
    tags = [f"v{number}" for number in range(16)]
    put(repository, CONFIG)

    def publish(tag: str) -> None:
        repository.put_manifest(image(annotations={"tag": tag}), media.OCI_MANIFEST, tag)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, tags))
    assert repository.tags() == sorted(tags)
    for tag in tags:
        assert decode(repository.manifest(tag)[1], tag).annotations == {"tag": tag}


def test_a_manifest_comes_back(repository):
    """By tag and by digest the same bytes come, with their digest, size and media type."""
    put(repository, CONFIG)
    data = image()
    stored = repository.put_manifest(data, media.OCI_MANIFEST, "v1")
    assert stored == blob_of(data, media.OCI_MANIFEST)
    assert repository.manifest("v1") == (stored, data)
    assert repository.manifest(stored.digest) == (stored, data)


def test_bytes_of_a_manifest_are_kept(repository):
    """A manifest is stored as it was sent, white space included: its digest is over the bytes."""
    put(repository, CONFIG)
    data = b" \n" + image().replace(b",", b" ,\n")
    assert repository.manifest(repository.put_manifest(data, media.OCI_MANIFEST).digest)[1] == data


def test_a_manifest_without_a_tag(repository):
    """Without a tag a manifest is found by its digest and no tag appears."""
    stored = put_image(repository)
    put_image(repository, b"layer", tag="other")
    assert repository.manifest(stored.digest)[0] == stored
    assert repository.tags() == ["other"]


def test_a_manifest_can_be_put_again(repository):
    """Putting the same manifest twice, and under two tags, changes nothing else."""
    first = put_image(repository, b"layer", tag="v1")
    assert put_image(repository, b"layer", tag="v1") == first
    assert put_image(repository, b"layer", tag="v2") == first
    assert put_image(repository, b"layer") == first
    assert repository.tags() == ["v1", "v2"]


def test_a_tag_moves(repository):
    """A tag names what was put last; what it named before is still found by digest."""
    first = put_image(repository, b"1", tag="latest")
    second = put_image(repository, b"2", tag="latest")
    assert repository.manifest("latest")[0] == second
    assert repository.manifest(first.digest)[0] == first
    assert repository.tags() == ["latest"]


def test_tags_are_sorted(repository):
    """All tags are listed, sorted, whatever the order they came in."""
    for tag in ("b", "a10", "_x", "A", "a2", "1.0-rc.1_x"):
        put_image(repository, tag=tag)
    assert repository.tags() == ["1.0-rc.1_x", "A", "_x", "a10", "a2", "b"]


def test_an_unknown_repository(repository):
    """A repository that nobody put anything into is NotFound, and no blob is in it."""
    with pytest.raises(NotFound):
        repository.tags()
    with pytest.raises(NotFound):
        repository.manifest("latest")
    with pytest.raises(NotFound):
        repository.manifest(ABSENT)
    with pytest.raises(NotFound):
        repository.delete_manifest(ABSENT)
    with pytest.raises(NotFound), repository.open(blob_of(b"absent"), 0, 6):
        pass
    assert repository.stat_blob(ABSENT) is None
    assert repository.referrers(ABSENT) == []


def test_an_unknown_manifest(repository):
    """An unknown tag or digest in a known repository is NotFound, with a next step."""
    put_image(repository, tag="v1")
    for target in ("v2", ABSENT):
        with pytest.raises(NotFound) as caught:
            repository.manifest(target)
        assert caught.value.hint
        with pytest.raises(NotFound):
            repository.delete_manifest(target)


def test_what_is_no_digest_is_refused(backend, repository):
    """A target that looks like a digest and is none is refused."""
    put_image(repository, tag="v1")
    with pytest.raises(ModelpackError) as caught:
        repository.manifest("sha256:abc")
    if backend.kind != "distribution":  # it answers 500
        assert caught.value.permanent


def test_a_blob_digest_is_no_manifest(repository):
    """A layer cannot be fetched as if it were a manifest."""
    put_image(repository, b"layer", tag="v1")
    with pytest.raises(ModelpackError):
        repository.manifest(blob_of(b"layer").digest)


def test_a_manifest_needs_its_blobs(backend, repository):
    """A manifest that names an absent blob is refused; nothing of it is stored."""
    put(repository, CONFIG)
    data = image([blob_of(b"never put")])
    if backend.kind == "crane":
        pytest.skip("crane's registry takes manifests whose blobs it does not have")
    with pytest.raises(Rejected):
        repository.put_manifest(data, media.OCI_MANIFEST, "v1")
    with pytest.raises(NotFound):
        repository.manifest(blob_of(data).digest)
    with pytest.raises(NotFound):
        repository.manifest("v1")


def test_an_index_needs_its_manifests(repository):
    """An index that names an absent manifest is refused."""
    put_image(repository, tag="v1")
    with pytest.raises(ModelpackError):
        put_index(repository, blob_of(b"never put", media.OCI_MANIFEST), tag="all")
    assert repository.tags() == ["v1"]


def test_an_index_and_its_manifests(repository):
    """An index is stored like a manifest, its manifests are found by digest."""
    children = [put_image(repository, layer) for layer in (b"amd64", b"arm64")]
    index = put_index(repository, *children, tag="all")
    assert repository.manifest("all")[0] == index
    assert [repository.manifest(child.digest)[0] for child in children] == children


def test_what_is_no_manifest_is_refused(repository):
    """Bytes that are no manifest are refused for good."""
    with pytest.raises(ModelpackError) as caught:
        repository.put_manifest(b"[not a manifest", media.OCI_MANIFEST, "v1")
    assert caught.value.permanent


def test_a_manifest_near_the_limit(repository):
    """A manifest just under 4 MiB is stored and read."""
    put(repository, CONFIG)
    data = image(annotations={"a": "x" * (limits.MANIFEST_BYTES - 1000)})
    assert limits.MANIFEST_BYTES - 1000 < len(data) < limits.MANIFEST_BYTES
    repository.put_manifest(data, media.OCI_MANIFEST, "v1")
    assert repository.manifest("v1")[1] == data


def test_annotations_in_any_script(repository):
    """Annotations keep every character."""
    annotations = {"title": '模型 Ünïcøde 🦙 \u2028 "quoted" \\ \x7f', "org.例え/キー": "é"}
    put_image(repository, tag="v1", annotations=annotations)
    assert decode(repository.manifest("v1")[1], "v1").annotations == annotations


def test_delete_by_digest(backend, repository):
    """Removing a manifest by digest removes all its tags and nothing else."""
    stored = put_image(repository, b"gone", tag="v1")
    put_image(repository, b"gone", tag="v2")
    kept = put_image(repository, b"kept", tag="v3")
    repository.delete_manifest(stored.digest)
    with pytest.raises(NotFound):
        repository.manifest(stored.digest)
    assert repository.manifest("v3")[0] == kept
    if backend.kind != "crane":  # its tags are copies of manifests
        assert repository.tags() == ["v3"]


def test_delete_by_tag(repository):
    """Removing a tag removes it; other manifests keep theirs."""
    put_image(repository, b"gone", tag="v1")
    put_image(repository, b"kept", tag="v2")
    repository.delete_manifest("v1")
    assert repository.tags() == ["v2"]
    with pytest.raises(NotFound):
        repository.manifest("v1")
    with pytest.raises(NotFound):
        repository.delete_manifest("v1")


def test_a_removed_manifest_can_be_put_again(repository):
    """After a removal the same artifact can be published anew."""
    stored = put_image(repository, b"layer", tag="v1")
    repository.delete_manifest(stored.digest)
    assert put_image(repository, b"layer", tag="v1") == stored
    assert repository.manifest("v1")[0] == stored
    assert read(repository, blob_of(b"layer")) == b"layer"


def test_referrers(repository):
    """Manifests with a subject are listed for it, all or of one type, with their annotations."""
    model = put_image(repository, b"weights", tag="v1")
    assert repository.referrers(model.digest) == []
    signature = put_image(
        repository, subject=model, artifact_type="example/signature", annotations={"by": "Ann"}
    )
    index = put_image(repository, subject=model, artifact_type="example/index")
    put_image(repository, b"x", subject=signature, artifact_type="example/signature")
    found = {entry.digest: entry for entry in repository.referrers(model.digest)}
    assert found.keys() == {signature.digest, index.digest}
    entry = found[signature.digest]
    assert entry.artifact_type == "example/signature"
    assert entry.annotations == {"by": "Ann"}
    assert (entry.media_type, entry.size) == (signature.media_type, signature.size)
    one_type = repository.referrers(model.digest, "example/index")
    assert [entry.digest for entry in one_type] == [index.digest]
    assert repository.referrers(model.digest, "example/other") == []


def test_a_referrer_without_a_type_has_that_of_its_config(repository):
    """Where a manifest names no artifact type, its config's media type is it."""
    model = put_image(repository, b"weights", tag="v1")
    put_image(repository, subject=model)
    assert [entry.artifact_type for entry in repository.referrers(model.digest)] == [
        media.OCI_CONFIG
    ]


def test_a_subject_may_come_later(repository):
    """A referrer can be put before its subject and is listed all the same."""
    put(repository, CONFIG)
    model = image(annotations={"comes": "later"})
    subject = blob_of(model, media.OCI_MANIFEST)
    referrer = put_image(repository, subject=subject, artifact_type="example/signature")
    assert [entry.digest for entry in repository.referrers(subject.digest)] == [referrer.digest]


def test_mount(backend, repository):
    """A blob of a neighbour is linked without its bytes travelling, or False is returned."""
    neighbour = backend.connect(f"{backend.name}-neighbour")
    blob = put(neighbour, b"shared weights")
    mounted = repository.mount_blob(blob, f"{backend.name}-neighbour")
    if backend.kind == "memory":
        assert mounted
    if backend.kind == "layout":
        assert not mounted
    if mounted:
        assert read(repository, blob) == b"shared weights"
    else:
        assert read(repository, put(repository, b"shared weights")) == b"shared weights"


def test_mount_of_what_is_not_there(backend, repository):
    """Mounting an absent blob, or from an absent repository, returns False and no error."""
    put(backend.connect(f"{backend.name}-neighbour"), b"something else")
    if backend.kind != "crane":  # it answers 201 to every mount of a blob that anybody has
        assert not repository.mount_blob(blob_of(b"absent"), f"{backend.name}-neighbour")
        assert not repository.mount_blob(blob_of(b"absent"), f"{backend.name}-nowhere")
    assert repository.stat_blob(blob_of(b"absent").digest) is None


def test_another_client_sees_it(backend, repository, large):
    """What one client published another one reads, after the first has left."""
    stored = put_image(repository, large[: 2 * MIB], tag="v1")
    repository.close()
    other = backend.again()
    assert other.manifest("v1")[0] == stored
    assert read(other, blob_of(large[: 2 * MIB])) == large[: 2 * MIB]


def test_the_name_is_for_people(repository):
    """A repository says who it is, and errors name what was asked for."""
    assert repository.name
    put_image(repository, tag="v1")
    with pytest.raises(NotFound, match="absent-tag"):
        repository.manifest("absent-tag")


def test_what_is_no_tag_is_refused(backend, repository):
    """A tag outside the grammar is refused and nothing is listed under it."""
    put_image(repository, tag="v1")
    if backend.kind == "crane":
        pytest.skip("crane's registry takes any tag")
    with pytest.raises(ModelpackError):
        repository.put_manifest(image(), media.OCI_MANIFEST, "not a tag")
    assert repository.tags() == ["v1"]


def test_a_blob_of_bytes(repository):
    """Small companions of manifests are content too."""
    blob = blob_of(b"{}")
    assert moved_by_putting(repository, Bytes(blob, b"{}")) == 2
