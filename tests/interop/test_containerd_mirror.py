"""containerd pulls models through the mirror of the cache daemon."""

import threading

import pytest

from modelpack.oci.credentials import NoCredentials
from modelpack.spec.reference import Reference
from modelpack.verbs.node import Node
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.process import Daemon
from tests.oci.conftest import Known
from tests.support.containerd import DEBIAN, RECENT, containerd
from tests.support.cri import CriError
from tests.support.faults import fault_proxy
from tests.support.processes import free_port, give_back, wait_until
from tests.support.weights import tree

VERSIONS = [pytest.param(DEBIAN, id="1.x"), pytest.param(RECENT, id="2.x", marks=pytest.mark.slow)]
KINDS = [":v1", "@"]


class Scene:
    """A registry behind a proxy that counts, a daemon with a mirror of it, a containerd."""

    def __init__(self, registry, proxy, daemon, runtime, name, digest) -> None:
        self.registry, self.proxy, self.daemon, self.runtime = registry, proxy, daemon, runtime
        self.name, self.digest = name, digest
        self.node = Node(daemon.socket)
        self.credential = (registry.username, registry.password)

    def reference(self, kind):
        """By tag or by digest."""
        return f"{self.proxy.host}/{self.name}{kind}{self.digest if kind == '@' else ''}"

    def cache(self):
        """Have the daemon fetch it, with the right credential."""
        secret = dict(zip(("username", "password"), self.credential, strict=True))
        body = {
            "ref": self.reference(":v1"),
            **({"credential": secret} if secret["username"] else {}),
        }
        key = self.node.send("POST", "/v1/models", body)["key"]
        wait_until(lambda: self.node.get(f"/v1/models/{key}")["state"] == "ready")

    def files(self):
        """The files of the image as containerd mounts it, by tag."""
        with self.runtime.mounted(self.reference(":v1")) as mounted:
            found = tree(mounted)
        assert found.pop(".modelpack/index")
        return found


@pytest.fixture(params=VERSIONS)
def scene(request, tmp_path, name, model, session):
    """Build one before a registry (a fixture's name)."""
    running, ports, proxies = [], [], []
    with containerd(tmp_path / "containerd", binaries=request.param) as runtime:

        def make(fixture="registry", *options):
            registry = request.getfixturevalue(fixture)
            known = Known(registry.username, registry.password)
            credentials = known if registry.username else NoCredentials()
            reference = Reference.parse(f"{registry.host}/{name}:v1")
            done = push(str(model), reference, session(credentials=credentials), PushOptions())
            context = fault_proxy(registry.host)
            proxy = context.__enter__()
            proxies.append(context)
            ports.append(free_port())
            (tmp_path / "d").mkdir()
            daemon = Daemon(
                tmp_path / "d", f'--registries=["{proxy.host}"]', f"--mirror=127.0.0.1:{ports[0]}",
                f'--mirror-for=["{proxy.host}/t"]', *options,
            ).start()  # fmt: skip
            running.append(daemon)
            runtime.set_mirror(proxy.host, f"http://127.0.0.1:{ports[0]}")
            return Scene(registry, proxy, daemon, runtime, name, done.digest)

        yield make
        for daemon in running:
            if daemon.process.poll() is None:
                daemon.stop(9)
        for proxy in proxies:
            proxy.__exit__(None, None, None)
        for port in ports:
            give_back(port)


def test_a_cached_model_is_not_downloaded_again(scene, model):
    """containerd has it from the node's own files; from the registry come a few small answers."""
    made = scene()
    made.cache()
    before = made.proxy.bytes_sent()
    made.runtime.cri_pull(made.reference(":v1"))
    assert made.files() == tree(model)
    assert made.proxy.bytes_sent() - before < 10_000


def test_an_absent_model_is_downloaded_once_and_kept(scene, model):
    """containerd reads along; the node has it afterwards."""
    made = scene()
    made.runtime.cri_pull(made.reference(":v1"))
    assert made.files() == tree(model)
    wait_until(lambda: [one["state"] for one in made.node.get("/v1/models")] == ["ready"])
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    assert made.proxy.bytes_sent() < 1.05 * size
    assert [tree(path) for path in made.daemon.trees()] == [tree(model)]


@pytest.mark.parametrize("cached", [True, False])
def test_the_daemon_is_killed_in_the_middle(scene, model, cached):
    """The pull ends well all the same: containerd goes on at the registry."""
    made = scene()
    if cached:
        made.cache()
    else:
        made.proxy.add("GET .*/blobs/", slice_pause=(100_000, 0.01))
    failures = []

    def pull():
        try:
            made.runtime.cri_pull(made.reference(":v1"))
        except CriError as error:
            failures.append(error)

    puller = threading.Thread(target=pull)
    before = made.proxy.bytes_sent()
    puller.start()
    wait_until(lambda: cached or made.proxy.bytes_sent() - before > 2_000_000)
    made.daemon.stop(9)
    made.proxy.rules.clear()
    puller.join()
    assert failures == []
    assert made.files() == tree(model)


@pytest.mark.parametrize("fixture", ["token_registry", "htpasswd_registry"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_private_model_needs_the_secret(scene, model, fixture, kind):
    """Without it containerd gets nothing, by tag and by digest; with it, the model."""
    made = scene(fixture)
    made.cache()
    with pytest.raises(CriError):
        made.runtime.cri_pull(made.reference(kind))
    with pytest.raises(CriError):
        made.runtime.cri_pull(made.reference(kind), ("ann", "guess"))
    assert not list(made.runtime.directory.glob("root/io.containerd.content.v1.content/blobs/*/*"))
    made.runtime.cri_pull(made.reference(":v1"), made.credential)
    assert made.files() == tree(model)


def test_a_fetch_that_fails_does_not_fail_the_pull(scene, model):
    """The node has no room: containerd gets the bytes by relay, or from the registry."""
    made = scene("registry", "--most=1000000")
    made.runtime.cri_pull(made.reference(":v1"))
    assert made.files() == tree(model)
    assert made.daemon.trees() == []


def test_damage_on_the_way_is_mended(scene, model):
    """Wrong bytes from the registry never reach containerd through a fetch."""
    made = scene()
    made.proxy.add("GET .*/blobs/", flip=1_000_000, times=1, skip=3)
    made.runtime.cri_pull(made.reference(":v1"))
    assert made.files() == tree(model)
