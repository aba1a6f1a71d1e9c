"""containerd pulls what we publish, through a mirror too: what a mirror is asked, what it may answer.

The stand-in for a mirror is a proxy before the same registry, so that all requests are on record.
"""

import base64
import contextlib
import json
import threading
from urllib.parse import parse_qs, urlsplit

import pytest

from modelpack.oci.credentials import NoCredentials
from modelpack.spec.reference import Reference
from modelpack.verbs.push import PushOptions, push
from tests.oci.conftest import Known
from tests.support.containerd import DEBIAN, RECENT, containerd
from tests.support.cri import CriError
from tests.support.faults import fault_proxy, wait_until
from tests.support.servers import docker_registry
from tests.support.weights import tree

INDEX = ".modelpack/index"
VERSIONS = [pytest.param(DEBIAN, id="1.x"), pytest.param(RECENT, id="2.x", marks=pytest.mark.slow)]
HOWS = ["pull", "cri_pull"]
EVERYTHING = r"/v2/"
CHUNK = 1 << 20


@pytest.fixture(params=VERSIONS)
def node(request, tmp_path):
    with containerd(tmp_path / "node", binaries=request.param) as running:
        yield running


class Scene:
    """A published model; the registry as containerd knows it, and a mirror before it."""

    def __init__(self, registry, name, digest, upstream, mirror):
        self.registry, self.upstream, self.mirror = registry, upstream, mirror
        self.name, self.digest = name, digest
        self.reference = f"{upstream.host}/{name}:v1"
        manifest = json.loads(registry.blob_path(digest).read_bytes())
        self.blobs = [manifest["config"]["digest"], *(one["digest"] for one in manifest["layers"])]
        self.layer = max(manifest["layers"], key=lambda one: one["size"])
        self.weights = f"GET .*/blobs/{self.layer['digest']}"
        self.credential = (registry.username, registry.password)

    def is_complete(self, node):
        """Whether the node has all bytes, and they are right."""
        return all(
            node.content(digest) == self.registry.blob_path(digest).read_bytes()
            for digest in [self.digest, *self.blobs]
        )

    def ranges(self, proxy):
        """Return the ranges that were asked of the largest layer."""
        return [one.headers["Range"] for one in proxy.requests(self.weights)]


@pytest.fixture
def publish(name, model, session):
    """Publish the model to a registry, and put proxies before that."""
    with contextlib.ExitStack() as stack:

        def make(registry):
            known = Known(registry.username, registry.password)
            done = push(
                str(model),
                Reference.parse(f"{registry.host}/{name}:v1"),
                session(credentials=known if registry.username else NoCredentials()),
                PushOptions(),
            )
            upstream, mirror = (
                stack.enter_context(fault_proxy(registry.host)) for _ in ("upstream", "mirror")
            )
            return Scene(registry, name, done.digest, upstream, mirror)

        yield make


@pytest.fixture
def scene(registry, publish, node):
    """A public model whose registry has a mirror."""
    made = publish(registry)
    node.set_mirror(made.upstream.host, f"http://{made.mirror.host}")
    return made


def schemes(proxy, pattern=EVERYTHING):
    """Return how each request was authorized: by "Basic", "Bearer" or not at all ("")."""
    return [(one.headers["Authorization"] or "").split(" ")[0] for one in proxy.requests(pattern)]


@pytest.mark.parametrize("how", HOWS)
def test_it_pulls_and_mounts(how, node, registry, publish, model):
    """Without a mirror the files of the mounted image are those of the model."""
    scene = publish(registry)
    node.set_mirror(scene.upstream.host, "")
    getattr(node, how)(scene.reference)
    assert scene.is_complete(node)
    with node.mounted(scene.reference) as mounted:
        found = tree(mounted)
    assert found.pop(INDEX)
    assert found == tree(model)
    assert all(not urlsplit(one.path).query for one in scene.upstream.seen)


@pytest.mark.parametrize("kind", ["tag", "digest"])
@pytest.mark.parametrize("how", HOWS)
def test_a_mirror_is_asked_for_everything_once(how, kind, node, scene):
    """It hears HEAD of the manifest, then GET of each digest, all with `ns`; the registry, nothing."""
    asked = "v1" if kind == "tag" else scene.digest
    separator = ":" if kind == "tag" else "@"
    getattr(node, how)(f"{scene.upstream.host}/{scene.name}{separator}{asked}")
    assert scene.is_complete(node)
    first, second, *rest = [
        (one.method, urlsplit(one.path).path.removeprefix(f"/v2/{scene.name}/"))
        for one in scene.mirror.seen
    ]
    assert first == ("HEAD", f"manifests/{asked}")
    assert second == ("GET", f"manifests/{scene.digest}")
    assert sorted(rest) == sorted(("GET", f"blobs/{digest}") for digest in scene.blobs)
    for one in scene.mirror.seen:
        assert parse_qs(urlsplit(one.path).query) == {"ns": [scene.upstream.host]}
        assert one.headers["Range"] is None
        assert one.headers["Authorization"] is None
    assert scene.upstream.seen == []


def test_content_is_not_asked_for_again(node, scene):
    """A second pull of the tag asks for nothing but what the tag is."""
    node.cri_pull(scene.reference)
    before = len(scene.mirror.seen)
    node.cri_pull(scene.reference)
    assert [one.method for one in scene.mirror.seen[before:]] == ["HEAD"]


def test_a_mirror_for_content_alone(node, scene):
    """Where a mirror may not resolve, the registry says what a tag is and the mirror has the rest."""
    node.set_mirror(scene.upstream.host, f"http://{scene.mirror.host}", ["pull"])
    node.cri_pull(scene.reference)
    assert scene.is_complete(node)
    assert [one.method for one in scene.upstream.seen] == ["HEAD"]
    assert scene.mirror.requests("HEAD") == []


def test_a_pull_through_cache(node, registry, publish, tmp_path):
    """docker-registry as a pull-through cache is such a mirror; it keeps what passed."""
    scene = publish(registry)
    with docker_registry(tmp_path / "cache", pull_through=f"http://{registry.host}") as cache:
        node.set_mirror(scene.upstream.host, f"http://{cache.host}")
        node.cri_pull(scene.reference)
    assert scene.is_complete(node)
    assert scene.upstream.seen == []
    assert cache.blob_path(scene.layer["digest"]).exists()


# What a mirror may answer.


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_mirror_that_refuses(status, node, scene):
    """Whatever the status, the registry is asked at once."""
    scene.mirror.add(EVERYTHING, status=status)
    node.cri_pull(scene.reference)
    assert scene.is_complete(node)
    assert len(scene.upstream.seen) == 2 + len(scene.blobs)
    assert len(scene.mirror.requests(scene.weights)) == 1


def test_a_mirror_that_is_too_busy(node, scene):
    """429 is tried again at once, five or six times, before the registry is asked."""
    scene.mirror.add(scene.weights, status=429)
    node.cri_pull(scene.reference)
    assert scene.is_complete(node)
    assert len(scene.mirror.requests(scene.weights)) in {5, 6}
    assert scene.ranges(scene.upstream) == [None]


def test_a_mirror_without_the_digest_of_a_tag(node, scene):
    """Where HEAD has no Docker-Content-Digest, the manifest is fetched by its tag, and once more."""
    scene.mirror.add("HEAD", replace_headers={"Docker-Content-Digest": None})
    node.cri_pull(scene.reference)
    assert scene.is_complete(node)
    paths = [urlsplit(one.path).path for one in scene.mirror.requests("GET .*/manifests/")]
    assert [path.rpartition("/")[2] for path in paths] == ["v1", scene.digest]


def test_a_mirror_that_hangs_up_before_it_answers(node, scene):
    """No answer at all is as good as a refusal."""
    scene.mirror.add(EVERYTHING, lose_answer=True)
    node.cri_pull(scene.reference)
    assert scene.is_complete(node)


def test_a_mirror_that_is_not_there(node, scene):
    """A mirror that cannot be connected to costs nothing but the attempt."""
    scene.mirror.end()
    node.cri_pull(scene.reference)
    assert scene.is_complete(node)


# The middle of a blob.


def test_a_mirror_that_dies_within_a_blob(node, scene):
    """The registry gives the rest, from the byte at which the mirror ended."""
    scene.mirror.add(scene.weights, stall_after=CHUNK, times=1)
    scene.mirror.add(scene.weights, lose_answer=True)  # while it ends
    failures = []

    def pull():
        try:
            node.cri_pull(scene.reference)
        except CriError as error:
            failures.append(error)

    puller = threading.Thread(target=pull)
    puller.start()
    wait_until(lambda: scene.mirror.bytes_sent(scene.weights) >= CHUNK)
    scene.mirror.end()
    puller.join()
    assert failures == []
    assert scene.is_complete(node)
    assert scene.ranges(scene.upstream) == [f"bytes={CHUNK}-"]


def test_a_blob_that_ends_early_is_continued_at_the_mirror(node, scene):
    """After an orderly end before Content-Length the mirror is asked first again, for the rest."""
    scene.mirror.add(scene.weights, cut=CHUNK, times=1)
    node.cri_pull(scene.reference)
    assert scene.is_complete(node)
    assert scene.ranges(scene.mirror) == [None, f"bytes={CHUNK}-"]
    assert scene.upstream.seen == []


@pytest.mark.parametrize("status", [404, 416])
def test_a_mirror_that_does_not_continue(status, node, scene):
    """Where the mirror refuses the rest, the registry gives it."""
    scene.mirror.add(scene.weights, cut=CHUNK, times=1)
    scene.mirror.add(scene.weights, status=status)
    node.cri_pull(scene.reference)
    assert scene.is_complete(node)
    assert scene.ranges(scene.upstream) == [f"bytes={CHUNK}-"]


def test_a_mirror_that_knows_no_ranges(node, scene):
    """200 instead of 206 is understood: what is there already is skipped."""
    scene.mirror.add(scene.weights, cut=CHUNK, times=1)
    scene.mirror.add(scene.weights, ignore_range=True)
    node.cri_pull(scene.reference)
    assert scene.is_complete(node)
    assert scene.upstream.seen == []


def test_promises_that_are_never_kept(node, scene):
    """200 and no byte, again and again, fails the pull: a mirror has to refuse while it still can."""
    scene.mirror.add(scene.weights, cut=0)
    with pytest.raises(CriError, match="unexpected EOF"):
        node.cri_pull(scene.reference)
    assert scene.ranges(scene.mirror) == [None] * 4
    assert scene.ranges(scene.upstream) == []


def test_a_reset_fails_the_pull(node, scene):
    """A reset within a blob is not mended from the registry; the next pull is."""
    scene.mirror.add(scene.weights, reset_after=CHUNK, times=1)
    with pytest.raises(CriError, match="connection reset by peer"):
        node.cri_pull(scene.reference)
    assert scene.ranges(scene.upstream) == []
    node.cri_pull(scene.reference)
    assert scene.is_complete(node)


def test_wrong_bytes_fail_the_pull(node, scene):
    """Damage by a mirror is noticed, but nobody else is asked."""
    scene.mirror.add(scene.weights, flip=CHUNK, times=1)
    with pytest.raises(CriError, match="unexpected commit digest"):
        node.cri_pull(scene.reference)
    assert scene.upstream.seen == []


# Private models.


@pytest.fixture
def private(request, publish, node):
    """Return a function that publishes to a registry which demands credentials."""

    def make(fixture):
        made = publish(request.getfixturevalue(fixture))
        node.set_mirror(made.upstream.host, f"http://{made.mirror.host}")
        return made

    return make


@pytest.mark.parametrize("how", HOWS)
def test_a_challenge_of_the_mirror_is_answered_with_the_password(how, node, private):
    """A Basic challenge that a mirror passes on brings it the credential that is meant for the registry."""
    scene = private("htpasswd_registry")
    getattr(node, how)(scene.reference, scene.credential)
    assert scene.is_complete(node)
    assert schemes(scene.mirror, "HEAD") == ["", "Basic"]
    assert schemes(scene.mirror, "GET .*/manifests/") == ["", "Basic"]
    assert set(schemes(scene.mirror, "GET .*/blobs/")) == {"Basic"}
    said = scene.mirror.requests("HEAD")[-1].headers["Authorization"].split(" ")[1]
    assert base64.b64decode(said).decode() == ":".join(scene.credential)
    assert scene.upstream.seen == []


@pytest.mark.parametrize("how", HOWS)
def test_a_challenge_of_the_mirror_is_answered_with_a_token(how, node, private):
    """A Bearer challenge that a mirror passes on brings it a token of the realm, not the password."""
    scene = private("token_registry")
    tokens = scene.registry.extra["tokens"]
    before = len(tokens.requests)
    getattr(node, how)(scene.reference, scene.credential)
    assert scene.is_complete(node)
    assert schemes(scene.mirror, "HEAD") == ["", "Bearer"]
    assert schemes(scene.mirror, "GET .*/manifests/") == ["", "Bearer"]
    assert set(schemes(scene.mirror, "GET .*/blobs/")) == {"Bearer"}
    assert scene.upstream.seen == []
    for one in tokens.requests[before:]:
        assert (one["method"], one["query"]["grant_type"]) == ("POST", ["password"])
        assert one["query"]["scope"] == [f"repository:{scene.name}:pull"]


@pytest.mark.parametrize("fixture", ["htpasswd_registry", "token_registry"])
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_mirror_that_does_not_challenge_sees_no_credential(status, fixture, node, private):
    """Where a mirror only refuses, the credential goes to the registry alone."""
    scene = private(fixture)
    scene.mirror.add(EVERYTHING, status=status)
    node.cri_pull(scene.reference, scene.credential)
    assert scene.is_complete(node)
    assert set(schemes(scene.mirror)) == {""}
    assert set(schemes(scene.upstream, "GET .*/blobs/")) != {""}


def test_a_credential_for_one_server(node, private):
    """A credential that names its server is not for the mirror, whose challenge stays unanswered."""
    scene = private("htpasswd_registry")
    node.cri_pull(scene.reference, scene.credential, f"http://{scene.upstream.host}")
    assert scene.is_complete(node)
    assert set(schemes(scene.mirror)) == {""}
    assert set(schemes(scene.upstream, "GET .*/blobs/")) == {"Basic"}


@pytest.mark.parametrize("fixture", ["htpasswd_registry", "token_registry"])
def test_without_a_credential_nothing_private_is_pulled(fixture, node, private):
    """A private model is for nobody who has no credential, mirror or not."""
    scene = private(fixture)
    with pytest.raises(CriError):
        node.cri_pull(scene.reference)
    assert scene.mirror.requests("GET") == []


# What only containerd 2 does.


@pytest.mark.slow
def test_parallel_chunks(registry, publish, tmp_path):
    """Where containerd 2 was told to, it asks for open ranges side by side and hangs up early."""
    scene = publish(registry)
    settings = (
        '[plugins."io.containerd.transfer.v1.local"]\n'
        f"max_concurrent_downloads = 3\nconcurrent_layer_fetch_buffer = {CHUNK}\n"
    )
    mirrors = {scene.upstream.host: f"http://{scene.mirror.host}"}
    with containerd(tmp_path / "node", mirrors, RECENT, settings) as node:
        node.cri_pull(scene.reference)
        assert scene.is_complete(node)
    asked = {f"bytes={at}-" for at in range(0, scene.layer["size"], CHUNK)}
    assert set(scene.ranges(scene.mirror)) == asked
    assert len(scene.ranges(scene.mirror)) == len(asked)
