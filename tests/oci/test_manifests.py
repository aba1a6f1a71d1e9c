"""Manifests, tags and their lists, from registries that are unlike docker-registry, or hostile."""

import json

import pytest

from modelpack.oci import pages
from modelpack.spec import limits, media
from modelpack.spec.digest import Digest
from modelpack.spec.errors import (
    BadReference,
    Denied,
    IntegrityError,
    LimitExceeded,
    NotFound,
    ProtocolViolation,
    Rejected,
    Unavailable,
)
from modelpack.spec.manifest import describe
from tests.contract.contents import image, put_image
from tests.oci.scripted import Say, scripted

DATA = b'{"schemaVersion":2}'
DIGEST = str(Digest.of(DATA))
OTHER = str(Digest.of(b"other"))
KIND = {"Content-Type": f"{media.OCI_MANIFEST}; charset=utf-8"}


def test_a_manifest_by_tag_and_digest(remote):
    """The descriptor is made of the bytes, the type is that of the answer without parameters."""
    with scripted(lambda asked: Say(200, KIND, DATA)) as server:
        repository = remote(server.host)
        for target in ("v1", DIGEST):
            assert repository.manifest(target) == (describe(media.OCI_MANIFEST, DATA), DATA)
    assert media.OCI_INDEX in server.asked[0].headers["Accept"]


def test_other_algorithms(remote):
    """A manifest asked for by its SHA-512 is checked with that."""
    digest = str(Digest.of(DATA, "sha512"))
    with scripted(lambda asked: Say(200, KIND, DATA)) as server:
        assert remote(server.host).manifest(digest)[0].digest == digest
        with pytest.raises(IntegrityError):
            remote(server.host).manifest(str(Digest.of(b"other", "sha512")))


@pytest.mark.parametrize("target", ["v1", OTHER])
def test_manifests_that_are_not_what_was_asked_for(remote, target):
    """By digest the bytes are compared with it, by tag with what the registry claims."""
    said = Say(200, {**KIND, "Docker-Content-Digest": OTHER}, DATA)
    with scripted(lambda asked: said) as server, pytest.raises(IntegrityError) as caught:
        remote(server.host).manifest(target)
    assert (caught.value.expected, caught.value.got) == (OTHER, DIGEST)


@pytest.mark.parametrize("length", [2 << 30, None])
def test_manifests_that_are_too_large(remote, length):
    """Neither an announced nor an unannounced flood is read beyond the limit."""
    body = b"x" * (limits.MANIFEST_BYTES + 1)
    with scripted(lambda asked: Say(200, KIND, body, length=length)) as server:
        with pytest.raises(LimitExceeded):
            remote(server.host).manifest("v1")
        assert len(server.asked) == 1


def test_a_compressed_flood(remote):
    """A body that grows when it is decompressed is measured after that."""
    import gzip

    packed = gzip.compress(bytes(100 << 20))
    said = Say(200, {**KIND, "Content-Encoding": "gzip"}, packed)
    with scripted(lambda asked: said) as server, pytest.raises(LimitExceeded):
        remote(server.host).manifest("v1")


@pytest.mark.parametrize("tag", ["../../other/manifests/v1", "a b", "v1?x=1", "", "x" * 129])
def test_what_is_no_tag_does_not_reach_the_registry(remote, tag):
    """A tag is checked before it becomes part of an address."""
    with scripted(lambda asked: Say(200, KIND, DATA)) as server:
        repository = remote(server.host)
        with pytest.raises(Rejected):
            repository.manifest(tag)
        with pytest.raises(Rejected):
            repository.delete_manifest(tag)
        with pytest.raises(BadReference):
            repository.manifest("sha256:../x")
    assert server.asked == []


@pytest.mark.parametrize("stored", [OTHER, "", "\x1b[2J"])
def test_a_registry_that_stores_something_else(remote, stored):
    """What the registry says that it has stored, or has if it says nothing, must be what was sent."""

    def answer(asked):
        if asked.method == "PUT":
            return Say(201, {"Docker-Content-Digest": stored} if stored else {})
        return Say(200, KIND, b"something else")

    with scripted(answer) as server, pytest.raises(IntegrityError):
        remote(server.host).put_manifest(image(), media.OCI_MANIFEST, "v1")


def test_a_registry_that_does_not_say_what_it_stored(remote):
    """Without a digest in the answer the manifest is fetched and compared."""
    data = image()

    def answer(asked):
        return Say(201, {"OCI-Subject": "x"}) if asked.method == "PUT" else Say(200, KIND, data)

    with scripted(answer) as server:
        stored = remote(server.host).put_manifest(data, media.OCI_MANIFEST, "v1")
        assert stored.digest == str(Digest.of(data))
        assert [one.method for one in server.asked] == ["PUT", "GET"]


def test_deleting_a_tag_of_docker_registry(registry, remote):
    """docker-registry cannot delete a tag: what it names goes, with its other tags."""
    repository = remote(registry.host)
    stored = put_image(repository, b"x", tag="v1")
    put_image(repository, b"x", tag="v2")
    repository.delete_manifest("v1")
    assert repository.tags() == []
    with pytest.raises(NotFound):
        repository.manifest(stored.digest)


def test_registries_that_delete_tags(remote):
    """Where a tag can be deleted only the tag is."""
    with scripted(lambda asked: Say(202)) as server:
        remote(server.host).delete_manifest("v1")
    assert [one.path.rpartition("/")[2] for one in server.asked] == ["v1"]


def test_registries_that_do_not_allow_it(remote):
    """A refusal to delete a tag is not answered by deleting what it names."""
    with scripted(lambda asked: Say(403)) as server, pytest.raises(Denied):
        remote(server.host).delete_manifest("v1")
    assert len(server.asked) == 1


def test_registries_that_do_not_delete(remote):
    """The error says how deletion is switched on."""

    def answer(asked):
        return Say(200, KIND, DATA) if asked.method == "GET" else Say(405)

    with scripted(answer) as server, pytest.raises(Denied) as caught:
        remote(server.host).delete_manifest("v1")
    assert "storage.delete.enabled" in caught.value.hint


def tag_page(tags, link=""):
    headers = {"Content-Type": "application/json", **({"Link": link} if link else {})}
    return Say(200, headers, json.dumps({"name": "x", "tags": tags}).encode())


def test_tags_come_in_pages(remote):
    """Pages are followed to the last, by relative and by absolute links; tags are sorted."""
    found = [
        tag_page(["c", "b"], '</v2/x/tags/list?last=b>; rel="next"'),
        tag_page(None, '<?last=c>; rel="next"'),
        tag_page(["a", "b"]),
    ]
    with scripted(lambda asked: found.pop(0)) as server:
        assert remote(server.host).tags() == ["a", "b", "c"]
    assert [one.path.partition("?")[2] for one in server.asked] == ["n=1000", "last=b", "last=c"]


def test_tags_that_are_none(remote):
    """What a tag cannot be, control characters say, is not listed."""
    said = tag_page(["v1", "\x1b[2J", "a b", "", "x" * 200])
    with scripted(lambda asked: said) as server:
        assert remote(server.host).tags() == ["v1"]


def test_pages_on_another_host(remote):
    """The next page of a list must be on the registry: nobody else is sent our token."""
    said = tag_page([], '<http://127.0.0.1:1/x>; rel="next"')
    with (
        scripted(lambda asked: said) as server,
        pytest.raises(ProtocolViolation, match="another host"),
    ):
        remote(server.host).tags()


def test_pages_without_an_end(remote, monkeypatch):
    """A list that goes in circles is given up."""
    monkeypatch.setattr(pages, "_PAGES", 20)
    said = tag_page(["a"], '</again>; rel="next"')
    with scripted(lambda asked: said) as server:
        with pytest.raises(LimitExceeded):
            remote(server.host).tags()
        assert len(server.asked) == 20


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"tags": [1]}', b"[" * 100_000, b"\xff"])
def test_lists_that_are_none(remote, body):
    """What is not the JSON of a list of tags is refused in one line."""
    with scripted(lambda asked: Say(200, body=body)) as server:
        with pytest.raises(ProtocolViolation) as caught:
            remote(server.host).tags()
    assert "\n" not in str(caught.value)


def test_patience_has_an_end(remote):
    """An overloaded registry is asked five times."""
    with scripted(
        lambda asked: Say(429, {"Retry-After": "Wed, 21 Oct 2065 07:28:00 GMT"})
    ) as server:
        with pytest.raises(Unavailable) as caught:
            remote(server.host).tags()
        assert len(server.asked) == 5
    assert caught.value.retry_after == 120
