"""The mirror before real registries, as runtimes use it, and as attackers do."""

import hashlib
import http.client
import json
from urllib.parse import quote

import pytest

from modelpack.oci.credentials import Credential
from modelpack.oci.remote import RemoteRepository
from modelpack.spec.index import Coding
from modelpack.spec.manifest import describe
from modelpack.spec.progress import QUIET
from modelpack.spec.reference import Reference
from modelpack.spec.source import Bytes
from modelpack.transfer.blob import read_blob
from modelpack.verbs.node import Node
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.process import trusted
from tests.conftest import fast
from tests.oci.conftest import Known
from tests.support.faults import fault_proxy
from tests.support.processes import free_port, give_back, wait_until
from tests.support.tokens import PASSWORD, USER

ANN = Known(USER, PASSWORD)


class Client:
    """Asks a mirror as containerd does."""

    def __init__(self, port, registry, name) -> None:
        self.port, self.registry, self.name = port, registry, name

    def ask(self, kind, target, *, method="GET", name="", **headers):
        """Return status, headers, body; a body that is cut off raises IncompleteRead."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            path = f"/v2/{name or self.name}/{kind}/{target}?ns={quote(self.registry, safe='')}"
            sent = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, headers=sent)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()


@pytest.fixture
def mirrored(daemon):
    """Start a daemon that mirrors a registry; returns the daemon and a client."""
    ports = []

    def start(registry, name, *options):
        port = free_port()
        ports.append(port)
        one = daemon(
            f'--registries=["{registry}"]', f"--mirror=127.0.0.1:{port}",
            f'--mirror-for=["{registry}/{name.rpartition("/")[0]}"]', *options,
        ).start()  # fmt: skip
        return one, Client(port, registry, name)

    yield start
    for port in ports:
        give_back(port)


@pytest.fixture
def published(registry, model, name, session):
    """A model in the shared registry."""
    reference = Reference.parse(f"{registry.host}/{name}:v1")
    return push(str(model), reference, session(), PushOptions())


def blobs_of(registry, name, digest, credentials=None):
    """All blobs of an artifact as the registry has them, by digest."""
    settings = fast(credentials=credentials) if credentials else fast()
    repository = RemoteRepository(registry, name, settings)
    try:
        _, data = repository.manifest(digest)
        manifest = json.loads(data)
        found = {}
        for one in (manifest["config"], *manifest["layers"]):
            blob = describe("", b"")
            blob = type(blob)(one["mediaType"], one["digest"], one["size"])
            found[one["digest"]] = read_blob(repository, blob, 1 << 30)
        return data, found
    finally:
        repository.close()


def prefetch(one, reference):
    return json.loads(one.node("prefetch", reference, "--wait", "--json"))


def test_a_cached_model_is_served_from_the_disk(mirrored, proxy, name, published):
    """Every blob, byte for byte, and nothing of it comes from the registry again."""
    one, client = mirrored(proxy.host, name)
    data, blobs = blobs_of(proxy.host, name, published.digest)
    prefetch(one, f"{proxy.host}/{name}:v1")
    assert client.ask("manifests", "v1")[::2] == (200, data)
    status, headers, body = client.ask("manifests", published.digest)
    assert (status, body) == (200, data)
    assert headers["Docker-Content-Digest"] == published.digest
    before = proxy.bytes_sent()
    for digest, blob in blobs.items():
        assert client.ask("blobs", digest)[::2] == (200, blob), digest
        status, headers, _ = client.ask("blobs", digest, method="HEAD")
        assert (status, headers["Content-Length"]) == (200, str(len(blob)))
    assert proxy.bytes_sent() == before


def test_ranges(mirrored, registry, name, published):
    """Open-ended, from the end, over the joints of files, and those that cannot be."""
    one, client = mirrored(registry.host, name)
    _, blobs = blobs_of(registry.host, name, published.digest)
    prefetch(one, f"{registry.host}/{name}:v1")
    assert client.ask("manifests", published.digest)[0] == 200
    digest, blob = max(blobs.items(), key=lambda item: len(item[1]))
    size = len(blob)
    for asked, expected in {
        "bytes=0-": blob, "bytes=5-": blob[5:], "bytes=-7": blob[-7:], "bytes=511-513": blob[511:514],
        f"bytes={size - 1}-": blob[-1:], f"bytes=100-{size * 2}": blob[100:],
    }.items():  # fmt: skip
        status, headers, body = client.ask("blobs", digest, Range=asked)
        assert (status, body == expected) == (206, True), asked
        assert headers["Content-Range"].endswith(f"/{size}")
    assert client.ask("blobs", digest, Range=f"bytes={size}-")[0] == 416
    for ignored in ("bytes=7-3", "lines=1-2", "bytes=0-1,4-5", "bytes=-"):
        assert client.ask("blobs", digest, Range=ignored)[::2] == (200, blob), ignored


def test_what_is_not_mirrored_is_nobodys_business(mirrored, proxy, name, published):
    """404 at once, without a request to anybody: a system pod is never held up."""
    one, client = mirrored(proxy.host, name)
    proxy.seen.clear()
    assert client.ask("manifests", "v1", name="elsewhere/x")[0] == 404
    for target in ("../../v2/x", "v1%2f..", "sha256:1", "x" * 300):
        assert client.ask("manifests", target)[0] == 404
    client.registry = "other.example.com"
    assert client.ask("manifests", "v1")[0] == 404
    assert client.ask("blobs", published.digest)[0] == 404
    assert proxy.seen == []
    assert client.ask("manifests", "v1", method="PUT")[0] == 405
    assert one.process.poll() is None


def test_the_path_may_name_the_registry(mirrored, registry, name, published):
    """Podman and CRI-O put the registry into the path of a mirror's location."""
    _, client = mirrored(registry.host, name)
    client.registry = ""
    assert client.ask("manifests", "v1", name=f"{registry.host}/{name}")[0] == 200


def test_an_absent_model_is_passed_on_and_kept(mirrored, proxy, name, published):
    """The runtime reads along while it is fetched, and it is here afterwards: received once."""
    one, client = mirrored(proxy.host, name)
    _, blobs = blobs_of(proxy.host, name, published.digest)
    assert client.ask("manifests", "v1")[0] == 200
    before = proxy.bytes_sent()
    for digest, blob in blobs.items():
        assert client.ask("blobs", digest)[2] == blob
    model = prefetch(one, f"{proxy.host}/{name}@{published.digest}")
    assert model["state"] == "ready"
    total = sum(map(len, blobs.values()))
    assert proxy.bytes_sent() - before < 1.1 * total + 100_000


def test_slow_bytes_are_passed_on_as_they_come(mirrored, proxy, name, published):
    """The answer begins before the model is here, and ends right."""
    one, client = mirrored(proxy.host, name)
    _, blobs = blobs_of(proxy.host, name, published.digest)
    proxy.add("GET .*/blobs/", slice_pause=(200_000, 0.02))
    assert client.ask("manifests", "v1")[0] == 200
    digest, blob = max(blobs.items(), key=lambda item: len(item[1]))
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.request("GET", f"/v2/{name}/blobs/{digest}?ns={quote(proxy.host)}")
    response = connection.getresponse()
    start = response.read(512)
    early = Node(one.socket).get("/v1/models")
    assert start + response.read() == blob
    connection.close()
    assert [model["state"] for model in early] == ["fetching"]


def test_a_cut_is_seen_as_a_cut(mirrored, proxy, name, published):
    """If the registry dies meanwhile, the runtime gets no complete answer with wrong bytes."""
    _, client = mirrored(proxy.host, name)
    _, blobs = blobs_of(proxy.host, name, published.digest)
    assert client.ask("manifests", "v1")[0] == 200
    digest, blob = max(blobs.items(), key=lambda item: len(item[1]))
    proxy.add("GET .*/blobs/", flip=100_000)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        client.ask("blobs", digest)
    proxy.rules.clear()
    assert client.ask("blobs", digest)[::2] == (200, blob)


def test_who_hangs_up_early_stops_the_fetch(mirrored, proxy, name, published):
    """Nobody waits any more: after the grace the fetch ends."""
    one, client = mirrored(proxy.host, name, "--grace-seconds=0")
    proxy.add("GET .*/blobs/", slice_pause=(50_000, 0.05))
    manifest = json.loads(client.ask("manifests", "v1")[2])
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    largest = max(manifest["layers"], key=lambda layer: layer["size"])
    connection.request("GET", f"/v2/{name}/blobs/{largest['digest']}?ns={quote(proxy.host)}")
    connection.getresponse().read(512)
    connection.close()
    node = Node(one.socket)
    wait_until(lambda: [m["state"] for m in node.get("/v1/models")] == ["cancelled"])


def test_a_fetch_that_stalls_is_given_up_by_the_mirror(mirrored, proxy, name, published):
    """The answer ends early, and the rest is relayed: the runtime does not wait for ever."""
    _, client = mirrored(proxy.host, name)
    _, blobs = blobs_of(proxy.host, name, published.digest)
    assert client.ask("manifests", "v1")[0] == 200
    digest, blob = max(blobs.items(), key=lambda item: len(item[1]))
    for _ in range(4):
        proxy.add("GET .*/blobs/", stall_after=1_000, times=1, skip=1)
    with pytest.raises(http.client.IncompleteRead) as cut:
        client.ask("blobs", digest)
    proxy.rules.clear()
    have = len(cut.value.partial)
    status, _, rest = client.ask("blobs", digest, Range=f"bytes={have}-")
    assert (status, cut.value.partial + rest) == (206, blob)


def test_redirects_are_the_registrys(mirrored, proxy, name, published):
    """A relative address is relative to the registry, not to the mirror."""
    _, client = mirrored(proxy.host, name)
    digest = "sha256:" + "0" * 64
    proxy.add("(HEAD|GET) .*/blobs/", status=307, headers={"Location": "/elsewhere?x=1"})
    status, headers, _ = client.ask("blobs", digest)
    assert (status, headers["Location"]) == (307, f"http://{proxy.host}/elsewhere?x=1")


@pytest.mark.parametrize("form", ["zstd", "modelpack"])
def test_other_forms_come_right(mirrored, registry, model, name, session, form):
    """Compressed layers are passed on; raw ones are served from the files."""
    options = PushOptions(
        modelpack_form=form == "modelpack", coding=Coding(codec="zstd" if form == "zstd" else "")
    )
    done = push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), options)
    one, client = mirrored(registry.host, name)
    prefetch(one, f"{registry.host}/{name}:v1")
    data, blobs = blobs_of(registry.host, name, done.digest)
    assert client.ask("manifests", "v1")[2] == data
    for digest, blob in blobs.items():
        assert client.ask("blobs", digest)[::2] == (200, blob)


@pytest.fixture
def private(token_registry, model, name, session):
    """A model that only ann may read."""
    reference = Reference.parse(f"{token_registry.host}/{name}:v1")
    return push(str(model), reference, session(credentials=ANN), PushOptions())


def token(registry, name, *, known=True):
    """A bearer token as containerd gets it, after the mirror relayed the challenge."""
    query = {"service": ["test"], "scope": [f"repository:{name}:pull"]}
    basic = "Basic YW5uOnMzY3JldA==" if known else ""
    status, answer = registry.extra["tokens"].issue(query, basic)
    assert status == 200
    return f"Bearer {answer['token']}"


def test_a_private_model_needs_the_secret(mirrored, token_registry, name, private):
    """By tag, by digest and by blob; also when it is here; also after somebody else was allowed."""
    one, client = mirrored(token_registry.host, name, trusted(token_registry))
    secret = {"username": USER, "password": PASSWORD}
    node = Node(one.socket)
    body = {"ref": f"{token_registry.host}/{name}:v1", "credential": secret}
    key = node.send("POST", "/v1/models", body)["key"]
    wait_until(lambda: node.get(f"/v1/models/{key}")["state"] == "ready")
    _, blobs = blobs_of(token_registry.host, name, private.digest, ANN)
    things = [("manifests", "v1"), ("manifests", private.digest)]
    things += [("blobs", digest) for digest in blobs]

    def refused():
        stranger = token(token_registry, name, known=False)
        for kind, target in things:
            status, headers, found = client.ask(kind, target)
            assert status == 401, kind
            assert headers["WWW-Authenticate"].startswith("Bearer realm=")
            assert found == b""
            for wrong in (stranger, "Bearer x.y.z", "Basic YW5uOnMzY3JldA=="):
                status, _, found = client.ask(kind, target, Authorization=wrong)
                assert (status in (401, 404), found) == (True, b""), (kind, wrong)

    refused()
    right = token(token_registry, name)
    for kind, target in things:
        status, _, found = client.ask(kind, target, Authorization=right)
        assert status == 200
        assert hashlib.sha256(found).hexdigest() == target.partition(":")[2] or target == "v1"
    refused()


def test_an_absent_private_model_comes_with_the_callers_token(
    mirrored, token_registry, name, private
):
    """The daemon fetches it with that token and nothing else, and keeps it."""
    one, client = mirrored(token_registry.host, name)
    right = token(token_registry, name)
    _, blobs = blobs_of(token_registry.host, name, private.digest, ANN)
    assert client.ask("manifests", "v1", Authorization=right)[0] == 200
    for digest, blob in blobs.items():
        assert client.ask("blobs", digest, Authorization=right)[2] == blob
    node = Node(one.socket)
    wait_until(lambda: [m["state"] for m in node.get("/v1/models")] == ["ready"])


def test_a_registry_with_passwords_is_left_to_the_runtime(
    mirrored, htpasswd_registry, model, name, session
):
    """Basic would have the runtime send its password to us: 404, and it asks the registry."""
    host = htpasswd_registry.host
    known = Known(htpasswd_registry.username, htpasswd_registry.password)
    done = push(
        str(model), Reference.parse(f"{host}/{name}:v1"), session(credentials=known), PushOptions()
    )
    one, client = mirrored(host, name)
    secret = {"username": htpasswd_registry.username, "password": htpasswd_registry.password}
    node = Node(one.socket)
    key = node.send("POST", "/v1/models", {"ref": f"{host}/{name}:v1", "credential": secret})["key"]
    wait_until(lambda: node.get(f"/v1/models/{key}")["state"] == "ready")
    _, blobs = blobs_of(host, name, done.digest, known)
    for kind, target in [("manifests", "v1"), ("manifests", done.digest), ("blobs", max(blobs))]:
        status, headers, found = client.ask(kind, target)
        assert (status, found) == (404, b"")
        assert "WWW-Authenticate" not in headers


def test_a_registry_that_is_away(mirrored, registry, name, published):
    """Who was allowed lately gets it from here; everybody else is told to come later."""
    with fault_proxy(registry.host) as proxy:
        one, client = mirrored(proxy.host, name, "--grant-seconds=0")
        data, blobs = blobs_of(proxy.host, name, published.digest)
        prefetch(one, f"{proxy.host}/{name}:v1")
        for digest in blobs:
            assert client.ask("manifests", "v1")[0] == 200
            assert client.ask("blobs", digest)[0] == 200
        proxy.add(".*", status=503)
        assert client.ask("manifests", "v1")[::2] == (200, data)
        for digest, blob in blobs.items():
            assert client.ask("blobs", digest)[::2] == (200, blob)
        stranger = {"Authorization": "Bearer abc"}
        assert client.ask("manifests", "v1", **stranger)[0] == 503
        assert client.ask("blobs", max(blobs), **stranger)[0] == 503


def test_a_second_registry_with_the_same_digests_obtains_nothing(
    mirrored, registry, crane_registry, name, published
):
    """What is cached of one reuse domain is not shown for a manifest of another."""
    _, blobs = blobs_of(registry.host, name, published.digest)
    one, client = mirrored(registry.host, name)
    prefetch(one, f"{registry.host}/{name}:v1")
    with fault_proxy(crane_registry.host) as proxy:
        # This one says yes to whatever it is asked about, and has nothing.
        proxy.add("HEAD .*/blobs/", status=200)
        one.stop()
        port = client.port
        one.options = tuple(
            f'--mirror-for=["{proxy.host}/t"]' if option.startswith("--mirror-for") else option
            for option in one.options
        )
        one.start()
        client = Client(port, proxy.host, name)
        for digest in blobs:
            assert client.ask("blobs", digest)[2] == b""


def lying(registry, name, session, model):
    """Push a model whose index speaks of other tar headers than its layer has; same payloads."""
    repository = RemoteRepository(registry, name, fast())
    done = push(str(model), Reference.parse(f"{registry}/{name}:v1"), session(), PushOptions())
    manifest = json.loads(repository.manifest(done.digest)[1])
    layer = manifest["layers"][0]
    kind = type(describe("", b""))
    tar = bytearray(
        read_blob(repository, kind(layer["mediaType"], layer["digest"], layer["size"]), 1 << 30)
    )
    tar[265:268] = b"eve"  # the name of the owner, which our rule leaves empty
    changed = describe(layer["mediaType"], bytes(tar))
    repository.put_blob(Bytes(changed, bytes(tar)), QUIET)
    last = manifest["layers"][-1]
    index = read_blob(repository, kind(last["mediaType"], last["digest"], last["size"]), 1 << 30)
    index = index.replace(layer["digest"].encode(), changed.digest.encode())
    described = describe(last["mediaType"], index)
    repository.put_blob(Bytes(described, index), QUIET)
    layer["digest"], last["digest"] = changed.digest, described.digest
    repository.put_manifest(
        json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json", "v1"
    )
    repository.close()
    return changed.digest


def test_an_artifact_that_lies_is_not_shown(mirrored, registry, model, name, session):
    """Its chunks are right, but its layer is not what they make up: it is taken away, and said."""
    layer = lying(registry.host, name, session, model)
    one, client = mirrored(registry.host, name)
    node = Node(one.socket)
    node.send("POST", "/v1/models", {"ref": f"{registry.host}/{name}:v1"})
    refused = one.directory / "root" / "refused"
    wait_until(lambda: list(refused.iterdir()))
    assert node.get("/v1/models") == [] or node.get("/v1/models")[0]["state"] != "ready"
    assert "is not what the chunk index says" in one.node(
        "prefetch", f"{registry.host}/{name}:v1", code=4
    )
    assert client.ask("manifests", "v1")[0] == 200  # from the registry: the runtime may judge
    assert hashlib.sha256(client.ask("blobs", layer)[2]).hexdigest() == layer[7:]


def test_layers_may_be_checked_before_anything_is_shown(mirrored, registry, model, name, session):
    """With --layer-check=before such an artifact never gets a name."""
    lying(registry.host, name, session, model)
    one, _ = mirrored(registry.host, name, "--layer-check=before")
    said = one.node("prefetch", f"{registry.host}/{name}:v1", "--wait", code=5)
    assert said == ""
    assert not one.trees()
    assert "is not what the chunk index says" in one.node(
        "prefetch", f"{registry.host}/{name}:v1", code=4
    )
    good = f"{registry.host}/{name}:good"
    push(str(model), Reference.parse(good), session(), PushOptions())
    assert prefetch(one, good)["state"] == "ready"


def test_digests_may_be_restricted(mirrored, registry, model, name, session):
    """--chunk-digests names what the operator accepts."""
    reference = f"{registry.host}/{name}:v1"
    push(str(model), Reference.parse(reference), session(), PushOptions())
    one, _ = mirrored(registry.host, name, '--chunk-digests=["sha256"]')
    one.node("prefetch", reference, "--wait", code=5)
    models = Node(one.socket).get("/v1/models")
    assert "accepted here: sha256" in models[0]["fetch"]["error"]
    assert not one.trees()


def test_a_credential_may_be_a_token(registry):
    """It is not printed."""
    assert "abc" not in repr(Credential(registry_token="abc"))
