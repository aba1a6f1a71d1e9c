"""Referrers: the API in pages, the fallback tag, and what may be in its way."""

import pytest

from modelpack.oci import referrers
from modelpack.spec import media
from modelpack.spec.digest import Digest
from modelpack.spec.errors import LimitExceeded, Rejected, Unavailable
from modelpack.spec.manifest import Descriptor, Index, decode, encode
from tests.contract.contents import put_image, put_index
from tests.oci.scripted import Say, scripted

SUBJECT = str(Digest.of(b"subject"))
TAG = SUBJECT.replace(":", "-")


def entry(text, kind):
    digest = str(Digest.of(text.encode()))
    return Descriptor(media.OCI_MANIFEST, digest, len(text), artifact_type=kind)


def page(*entries, link=""):
    headers = {"Content-Type": media.OCI_INDEX, **({"Link": link} if link else {})}
    return Say(200, headers, encode(Index(media_type=media.OCI_INDEX, manifests=entries)))


def test_pages_and_types(remote):
    """All pages are read, and types are told apart even if the registry does not."""
    first, second = entry("1", "signature"), entry("2", "index")
    found = {"signature": [page(first, link='</v2/x/more>; rel="next"'), page(second)]}
    with scripted(lambda asked: found["signature"].pop(0)) as server:
        assert remote(server.host).referrers(SUBJECT, "signature") == [first]
    assert server.asked[0].path.endswith(f"/referrers/{SUBJECT}?artifactType=signature")


@pytest.mark.parametrize(
    "no",
    [Say(404), Say(400), Say(405), Say(501), Say(200, {"Content-Type": "text/html"}, b"<html>")],
    ids=["404", "400", "405", "501", "html"],
)
def test_the_fallback_tag(remote, no):
    """Where there is no API, once asked, the tag made of the digest is read."""
    found = entry("1", "signature")

    def answer(asked):
        return page(found) if asked.path.endswith(f"/manifests/{TAG}") else no

    with scripted(answer) as server:
        assert remote(server.host).referrers(SUBJECT) == [found]
        assert len(server.asked) == 2


def test_a_registry_in_trouble_has_not_no_referrers(remote):
    """An overloaded registry is not taken for one that has none."""
    with scripted(lambda asked: Say(503)) as server, pytest.raises(Unavailable):
        remote(server.host).referrers(SUBJECT)


def test_too_many(remote, monkeypatch):
    """A registry cannot fill the memory with referrers."""
    monkeypatch.setattr(referrers, "_MOST", 3)
    said = page(entry("1", "a"), entry("2", "a"), link='</v2/x/more>; rel="next"')
    with scripted(lambda asked: said) as server, pytest.raises(LimitExceeded):
        remote(server.host).referrers(SUBJECT)


def test_the_fallback_tag_is_kept_up(registry, remote):
    """docker-registry has no API: each manifest with a subject is added to the tag, once."""
    repository = remote(registry.host)
    model = put_image(repository, b"weights", tag="v1")
    tag = model.digest.replace(":", "-")
    first = put_image(repository, subject=model, artifact_type="a")
    assert put_image(repository, subject=model, artifact_type="a") == first
    second = put_image(repository, subject=model, artifact_type="b")
    index = decode(repository.manifest(tag)[1], tag)
    assert [one.digest for one in index.manifests] == [first.digest, second.digest]


def test_an_index_can_have_a_subject(registry, remote):
    """An image index that refers to something is listed like a manifest."""
    import json

    repository = remote(registry.host)
    model = put_image(repository, b"weights", tag="v1")
    child = put_image(repository, b"child")
    stored = put_index(repository, child)
    data = json.loads(repository.manifest(stored.digest)[1])
    data["subject"] = {"mediaType": model.media_type, "digest": model.digest, "size": model.size}
    data["artifactType"] = "example/set"
    stored = repository.put_manifest(json.dumps(data).encode(), media.OCI_INDEX)
    (found,) = repository.referrers(model.digest)
    assert (found.digest, found.artifact_type) == (stored.digest, "example/set")


def test_what_is_no_list_is_not_replaced(registry, remote):
    """A manifest that somebody has put under the fallback tag is not lost."""
    repository = remote(registry.host)
    model = put_image(repository, b"weights", tag="v1")
    tag = model.digest.replace(":", "-")
    squatter = put_image(repository, b"squatter", tag=tag)
    with pytest.raises(Rejected, match="reserved"):
        put_image(repository, subject=model, artifact_type="a")
    with pytest.raises(Rejected):
        repository.referrers(model.digest)
    assert repository.manifest(tag)[0] == squatter
