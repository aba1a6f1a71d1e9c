"""One suite for every Repository: in memory, a layout on disk, and real registries over HTTP."""

import threading

import pytest

from modelpack.oci.layout import LayoutRepository
from modelpack.oci.memory import MemoryRegistry
from modelpack.oci.remote import RemoteRepository
from modelpack.spec import media
from modelpack.spec.errors import (
    IntegrityError,
    ModelpackError,
    NotFound,
    ProtocolViolation,
    RegistryError,
)
from modelpack.spec.manifest import Descriptor, Manifest, describe, encode
from modelpack.spec.progress import QUIET, Counter
from modelpack.spec.source import Bytes
from tests.conftest import fast

BACKENDS = ["memory", "layout", "docker-registry", "crane"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def repository(backend, name, tmp_path, request):
    if backend == "memory":
        opened = MemoryRegistry().repository(name)
    elif backend == "layout":
        opened = LayoutRepository(tmp_path / "layout")
    else:
        fixture = "registry" if backend == "docker-registry" else "crane_registry"
        opened = RemoteRepository(request.getfixturevalue(fixture).host, name, fast())
    yield opened
    opened.close()


def blob(data, media_type="application/octet-stream"):
    return Bytes(describe(media_type, data), data)


def put(repository, data):
    content = blob(data)
    repository.put_blob(content, QUIET)
    return content.blob


def read(repository, descriptor, offset, length):
    data = bytearray()
    with repository.open(descriptor, offset, length) as stream:
        while part := stream.read(100_000):
            data += part
    return bytes(data)


def manifest(repository, *layers, **more):
    config = put(repository, b"{}")
    parts = tuple(put(repository, layer) for layer in layers)
    return encode(Manifest(media_type=media.OCI_MANIFEST, config=config, layers=parts, **more))


def test_blobs_come_back_in_any_range(repository):
    """First, middle, last byte and the whole: each range is exactly what was asked for."""
    data = bytes(range(256)) * 5000
    descriptor = put(repository, data)
    for offset, length in ((0, 1), (700_000, 333), (len(data) - 1, 1), (0, len(data))):
        assert read(repository, descriptor, offset, length) == data[offset : offset + length]
    assert repository.stat_blob(descriptor.digest) == len(data)


def test_ranges_beyond_the_end_are_refused(repository):
    """A blob that is shorter than its descriptor says is an error, not a short answer."""
    descriptor = put(repository, b"x" * 1000)
    longer = Descriptor(descriptor.media_type, descriptor.digest, 5000)
    with pytest.raises((ProtocolViolation, RegistryError)):
        read(repository, longer, 500, 4000)


def test_unknown_blobs(repository):
    """What is not there has no size and cannot be read."""
    put(repository, b"something")
    missing = describe("t", b"never stored")
    assert repository.stat_blob(missing.digest) is None
    with pytest.raises(NotFound):
        read(repository, missing, 0, missing.size)


def test_wrong_bytes_are_not_stored(repository):
    """A blob whose bytes are not its digest is refused, and nothing stays under that name."""
    claimed = describe("t", b"what was promised")
    with pytest.raises((IntegrityError, RegistryError)):
        repository.put_blob(Bytes(claimed, b"what was sent...."), QUIET)
    assert repository.stat_blob(claimed.digest) is None


def test_putting_a_blob_again_is_right(repository):
    """The second time finds it there, and it is still the same."""
    data = b"twice" * 1000
    put(repository, data)
    assert read(repository, put(repository, data), 0, len(data)) == data


def test_empty_blobs(repository):
    """A blob of no bytes is a blob."""
    descriptor = put(repository, b"")
    assert repository.stat_blob(descriptor.digest) == 0


class Breaking:
    """Content that fails once, half-way."""

    def __init__(self, data):
        self.blob = describe("t", data)
        self.data = data
        self.failed = False
        self.offsets = []

    def read_from(self, offset):
        self.offsets.append(offset)
        for at in range(offset, len(self.data), 1 << 20):
            if at >= len(self.data) // 2 and not self.failed:
                self.failed = True
                raise ValueError("the source broke")
            yield self.data[at : at + (1 << 20)]


def test_a_broken_upload_can_be_repeated(repository):
    """After a failure in the middle nothing is there, and the next attempt stores the right bytes."""
    data = bytes(range(256)) * 50_000
    content = Breaking(data)
    with pytest.raises((ValueError, ModelpackError)):
        repository.put_blob(content, QUIET)
    assert repository.stat_blob(content.blob.digest) is None
    repository.put_blob(content, QUIET)
    assert read(repository, content.blob, 0, len(data)) == data


def test_progress_hears_of_every_byte(repository):
    """What travelled is reported, no more and no less."""
    data = b"0123456789" * 1_000_000
    counter = Counter(QUIET)
    repository.put_blob(blob(data), counter)
    assert counter.total == len(data)


def test_manifests_by_tag_and_digest(repository):
    """The bytes come back exactly, with the digest computed over them."""
    data = manifest(repository, b"layer", annotations={"ü": "模型"})
    stored = repository.put_manifest(data, media.OCI_MANIFEST, "v1")
    for target in ("v1", stored.digest):
        descriptor, got = repository.manifest(target)
        assert got == data
        assert (descriptor.digest, descriptor.size) == (stored.digest, len(data))
        assert descriptor.media_type == media.OCI_MANIFEST


def test_missing_manifests(repository):
    """A tag or digest that is not there is NotFound, and so is a repository without anything."""
    with pytest.raises(NotFound):
        repository.manifest("v1")
    with pytest.raises(NotFound):
        repository.tags()
    repository.put_manifest(manifest(repository, b"layer"), media.OCI_MANIFEST, "v1")
    for target in ("v2", "sha256:" + "0" * 64):
        with pytest.raises(NotFound):
            repository.manifest(target)


def test_incomplete_artifacts_are_refused(repository, backend):
    """A manifest that names a blob that is not there is not accepted."""
    if backend == "crane":
        return  # it accepts them; nothing of ours can change that
    config = put(repository, b"{}")
    data = encode(Manifest(media_type=media.OCI_MANIFEST, config=config, layers=(describe("t", b"?"),)))
    with pytest.raises(RegistryError):
        repository.put_manifest(data, media.OCI_MANIFEST, "v1")


def test_tags_move_and_are_sorted(repository):
    """A tag names the last manifest that was put under it."""
    for tag, layer in (("b", b"1"), ("a", b"2"), ("b", b"3")):
        last = repository.put_manifest(manifest(repository, layer), media.OCI_MANIFEST, tag)
    assert repository.tags() == ["a", "b"]
    assert repository.manifest("b")[0].digest == last.digest


def test_deleting(repository):
    """After a delete by digest the manifest and its tags are gone."""
    stored = repository.put_manifest(manifest(repository, b"x"), media.OCI_MANIFEST, "v1")
    other = repository.put_manifest(manifest(repository, b"y"), media.OCI_MANIFEST, "keep")
    repository.delete_manifest(stored.digest)
    with pytest.raises(NotFound):
        repository.manifest(stored.digest)
    assert repository.manifest("keep")[0].digest == other.digest
    with pytest.raises(NotFound):
        repository.delete_manifest("sha256:" + "0" * 64)


def test_deleting_a_tag(repository):
    """After a delete by tag the tag is gone."""
    repository.put_manifest(manifest(repository, b"x"), media.OCI_MANIFEST, "v1")
    repository.delete_manifest("v1")
    with pytest.raises(NotFound):
        repository.manifest("v1")


def test_large_manifests(repository):
    """A manifest just below the limit is stored and read."""
    data = manifest(repository, b"x", annotations={"k": "v" * 3_900_000})
    repository.put_manifest(data, media.OCI_MANIFEST, "large")
    assert repository.manifest("large")[1] == data


def test_referrers(repository):
    """Manifests with a subject are found by it, of one type or of all."""
    subject = repository.put_manifest(manifest(repository, b"x"), media.OCI_MANIFEST, "v1")
    found = {
        kind: repository.put_manifest(
            manifest(repository, kind.encode(), artifact_type=kind, subject=subject), media.OCI_MANIFEST
        ).digest
        for kind in ("application/one", "application/two")
    }
    assert {d.digest for d in repository.referrers(subject.digest)} == set(found.values())
    (one,) = repository.referrers(subject.digest, "application/one")
    assert one.digest == found["application/one"]
    assert repository.referrers("sha256:" + "0" * 64) == []


def test_many_threads(repository):
    """Eight threads putting equal and different blobs all succeed."""
    errors = []

    def work(number):
        try:
            for at in range(4):
                put(repository, f"thread {number if at % 2 else 0} blob {at}".encode() * 1000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert repository.stat_blob(describe("t", b"thread 3 blob 1" * 1000).digest) == 15_000
