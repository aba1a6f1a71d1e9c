"""The node with a real registry: joined, isolated, held, cancelled, continued."""

import os
import threading

import pytest

from cache_daemon.api.errors import Cancelled, Draining, NoSpace, NoSuchModel
from cache_daemon.api.values import Lease, Owner, Priority, State
from cache_daemon.fetch.access import Access, Policy
from cache_daemon.fetch.fetcher import Fetcher
from cache_daemon.fetch.grants import Grants
from cache_daemon.fetch.node import Ask, Model, Node
from cache_daemon.fetch.queue import Queue
from cache_daemon.space.room import Limits
from cache_daemon.store.scrub import Scrub
from cache_daemon.store.store import Store
from modelpack.oci.credentials import Credential
from modelpack.spec.errors import Denied, NotFound, Unauthorized, Unavailable
from modelpack.spec.index import Coding
from modelpack.spec.reference import Reference
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.conftest import ROOMY
from tests.conftest import fast
from tests.oci.conftest import Known
from tests.support.faults import fault_proxy
from tests.support.processes import wait_until
from tests.support.weights import make_model, tree


@pytest.fixture
def open_node(tmp_path):
    """Open nodes, each on its own or on the same directory; closed at the end."""
    nodes = []

    def open_(host, *, name="store", limits=ROOMY, slots=2, grace=60.0, grants=None, **connect):
        policy = Policy((host,), (tmp_path,))
        store = Store(tmp_path / name, limits)
        queue = Queue(Fetcher(store, jobs=3), slots=slots, grace_seconds=grace)
        nodes.append(Node(store, Access(policy, fast(**connect)), queue, grants))
        return nodes[-1]

    yield open_
    for node in nodes:
        node.close()


@pytest.fixture
def published(registry, model, name, session):
    """The model in the shared registry; returns its repository without the host."""
    reference = f"{registry.host}/{name}:v1"
    push(str(model), Reference.parse(reference), session(), PushOptions())
    return name


def arrived(node, key):
    """Wait for a model to be here."""
    job = node.queue.job(key)
    if job is not None:
        job.wait(60)
    return node.model(key)


def test_a_model_comes_to_the_node(open_node, registry, published, model):
    """Byte for byte, read-only, with numbers that say where from."""
    node = open_node(registry.host)
    asked = node.ensure(Ask(ref=f"{registry.host}/{published}:v1"))
    found = arrived(node, asked.key)
    assert found.state is State.READY
    assert tree(node.store.tree(found.key)) == tree(model)
    assert found.bytes_fetched > 0.9 * found.bytes_total
    again = node.ensure(Ask(ref=f"{registry.host}/{published}:v1"))
    assert (again.key, again.state) == (found.key, State.READY)


@pytest.mark.parametrize("form", ["zstd", "modelpack"])
def test_other_forms(open_node, registry, model, name, session, form):
    """Compressed layers, and raw layers with an index that nothing vouches for."""
    codec = "zstd" if form == "zstd" else ""
    options = PushOptions(modelpack_form=form == "modelpack", coding=Coding(codec=codec))
    reference = f"{registry.host}/{name}:v1"
    push(str(model), Reference.parse(reference), session(), options)
    node = open_node(registry.host)
    key = node.ensure(Ask(ref=reference)).key
    arrived(node, key)
    assert tree(node.store.tree(key)) == tree(model)


def test_artifacts_of_others(open_node, registry, model, name, monkeypatch, session):
    """Without an index whole layers come, and only what was selected is shown."""
    reference = f"{registry.host}/{name}:v1"
    push(str(model), Reference.parse(reference), session(), PushOptions(modelpack_form=True))
    monkeypatch.setattr("modelpack.checkout.artifact._index_beside", lambda *_: None)
    node = open_node(registry.host)
    everything = arrived(node, node.ensure(Ask(ref=reference)).key)
    assert tree(node.store.tree(everything.key)) == tree(model)
    some = arrived(node, node.ensure(Ask(ref=reference, include=("*.json",))).key)
    assert some.key != everything.key
    assert all(path.endswith(".json") for path in tree(node.store.tree(some.key)))
    assert some.bytes_unique == 0


def test_a_second_version_costs_its_changes(open_node, registry, published, model, session):
    """In the network, the changed chunks; on the disk, the changed file."""
    node = open_node(registry.host)
    first = arrived(node, node.ensure(Ask(ref=f"{registry.host}/{published}:v1")).key)
    shard = model / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    push(str(model), Reference.parse(f"{registry.host}/{published}:v2"), session(), PushOptions())
    second = arrived(node, node.ensure(Ask(ref=f"{registry.host}/{published}:v2")).key)
    assert second.key != first.key
    assert second.bytes_fetched < 0.1 * second.bytes_total
    assert second.bytes_fetched + second.bytes_reused == second.bytes_total
    assert second.bytes_unique == len(data)
    assert tree(node.store.tree(second.key)) == tree(model)


def test_two_callers_are_served_once(open_node, registry, published, proxy):
    """Each byte comes from the registry once, however many want it."""
    node = open_node(proxy.host)
    ask = Ask(ref=f"{proxy.host}/{published}:v1")
    total = arrived(node, node.ensure(ask).key).bytes_total
    node.remove(node.models()[0].key)
    proxy.seen.clear()
    found = []
    threads = [
        threading.Thread(
            target=lambda n=n: found.append(node.lease(f"pod-{n}", ask, Owner("pod"), 60))
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in found if isinstance(one, Lease)]) == 4
    manifests_and_index = 200_000
    assert proxy.bytes_sent() < total + manifests_and_index


def test_another_domain_obtains_nothing(open_node, registry, published, model, session, proxy):
    """Whoever names a private model's digests elsewhere is not served from the cache."""
    node = open_node(proxy.host)
    arrived(node, node.ensure(Ask(ref=f"{proxy.host}/{published}:v1")).key)
    elsewhere = f"other/{published}"
    push(str(model), Reference.parse(f"{registry.host}/{elsewhere}:v1"), session(), PushOptions())
    found = arrived(
        node, node.ensure(Ask(ref=f"{proxy.host}/{elsewhere}:v1", include=("model*",))).key
    )
    assert found.bytes_reused < 100_000
    assert found.bytes_fetched > 0.9 * found.bytes_total
    assert found.bytes_unique == 0  # and the bytes are on the disk once


def test_without_rights_there_is_nothing(open_node, htpasswd_registry, model, name, session):
    """A cached private model is refused like one that is not cached."""
    reference = f"{htpasswd_registry.host}/{name}:v1"
    known = Credential(htpasswd_registry.username, htpasswd_registry.password)

    class Own:
        def get(self, registry, repository):
            return known

    push(str(model), Reference.parse(reference), session(credentials=Own()), PushOptions())
    node = open_node(htpasswd_registry.host)
    with pytest.raises(Unauthorized):
        node.ensure(Ask(ref=reference))
    arrived(node, node.ensure(Ask(ref=reference, credential=known)).key)
    for credential in (None, Credential(known.username, "guess")):
        with pytest.raises(Unauthorized):
            node.ensure(Ask(ref=reference, credential=credential))
        with pytest.raises(Unauthorized):
            node.lease("x", Ask(ref=reference, credential=credential), Owner(), 1)
    assert "guess" not in repr(Ask(ref=reference, credential=Credential("a", "guess")))


def test_a_refusal_looks_the_same(open_node, htpasswd_registry, model, name, session):
    """The registry is asked the same, in the same order, whether the model is cached or not."""
    known = Credential(htpasswd_registry.username, htpasswd_registry.password)
    credentials = Known(known.username, known.password)
    asked = {}
    with fault_proxy(htpasswd_registry.host) as proxy:
        node = open_node(proxy.host)
        for tag in ("cached", "absent"):
            reference = f"{proxy.host}/{name}-{tag}:v1"
            options = PushOptions(annotations={"which": tag})
            done = push(
                str(model), Reference.parse(reference), session(credentials=credentials), options
            )
            if tag == "cached":
                arrived(node, node.ensure(Ask(ref=reference, credential=known)).key)
            proxy.seen.clear()
            for ref in (reference, f"{proxy.host}/{name}-{tag}@{done.digest}"):
                for credential in (None, Credential(known.username, "guess")):
                    with pytest.raises(Unauthorized):
                        node.lease("x", Ask(ref=ref, credential=credential), Owner(), 1)
            asked[tag] = [
                (one.method, one.path.replace(tag, "").replace(done.digest, "digest"), one.status)
                for one in proxy.seen
            ]
    assert asked["cached"] == asked["absent"]


def test_a_lease_waits_only_so_long(open_node, published, proxy):
    """Then it says how far the model is; asked again with the same id it is the lease."""
    gate = threading.Event()
    proxy.add("GET .*/blobs/", gate=gate, skip=1, times=1000)  # the index layer passes
    node = open_node(proxy.host)
    ask = Ask(ref=f"{proxy.host}/{published}:v1")
    found = node.lease("pod", ask, Owner("pod"), 0.2)
    assert isinstance(found, Model)
    assert found.fetch.priority is Priority.PREFETCH  # nobody waits just now
    gate.set()
    assert isinstance(node.lease("pod", ask, Owner("pod"), 60), Lease)


def test_nobody_waits_any_more(open_node, published, proxy):
    """After a grace the fetch is cancelled; asked for again it continues."""
    gate = threading.Event()
    proxy.add("GET .*/blobs/", gate=gate, skip=1, times=1000)
    node = open_node(proxy.host, grace=0.1)
    ask = Ask(ref=f"{proxy.host}/{published}:v1")
    key = node.lease("pod", ask, Owner("pod"), 0.1).key
    job = node.queue.job(key)
    wait_until(job.stop.is_set)
    gate.set()
    with pytest.raises(Cancelled):
        job.wait(60)
    assert node.model(key).state is State.CANCELLED
    assert isinstance(node.lease("pod", ask, Owner("pod"), 60), Lease)


def test_pods_go_first(open_node, registry, published, proxy, session, tmp_path):
    """A pod has a slot of its own; among others the more urgent goes first."""
    gate = threading.Event()
    proxy.add(f"GET .*{published}/blobs/", gate=gate, skip=1, times=1000)
    node = open_node(proxy.host, slots=1)
    slow = node.ensure(Ask(ref=f"{proxy.host}/{published}:v1"))
    quick = f"{published}-quick"
    push(
        str(make_model(tmp_path / "quick", seed=7, megabytes=2)),
        Reference.parse(f"{registry.host}/{quick}:v1"), session(), PushOptions(),
    )  # fmt: skip
    waiting = node.ensure(Ask(ref=f"{proxy.host}/{quick}:v1", include=("*.json",)))
    assert isinstance(
        node.lease("pod", Ask(ref=f"{proxy.host}/{quick}:v1"), Owner("pod"), 60), Lease
    )
    assert node.model(waiting.key).state is State.QUEUED
    gate.set()
    assert arrived(node, slow.key).state is State.READY
    assert arrived(node, waiting.key).state is State.READY


def test_the_next_daemon_continues(open_node, published, proxy):
    """What was fetched when the last one ended is not fetched again."""
    rule = proxy.add("GET .*/blobs/", slice_pause=(100_000, 0.02), times=1000)
    node = open_node(proxy.host)
    ask = Ask(ref=f"{proxy.host}/{published}:v1")
    key = node.ensure(ask).key
    total = 12_000_000
    wait_until(lambda: proxy.bytes_sent() > total // 3)
    node.close()
    rule.times = 0
    again = open_node(proxy.host)
    found = arrived(again, again.ensure(ask).key)
    assert found.key == key
    assert found.bytes_fetched < found.bytes_total - 4_000_000 // 2


def test_pins_wait_for_their_model(open_node, registry, published):
    """A model that is pinned before it is here is pinned when it arrives."""
    node = open_node(registry.host)
    key = node.ensure(Ask(ref=f"{registry.host}/{published}:v1"), pin=True).key
    assert arrived(node, key).pinned
    node.unpin(key)
    assert not node.model(key).pinned


def test_what_does_not_fit_is_refused_before_a_byte_moves(open_node, published, proxy):
    """With the exact shortfall."""
    node = open_node(proxy.host, limits=Limits(keep_free=0.0, inodes_free=0.0, most=1_000_000))
    key = node.ensure(Ask(ref=f"{proxy.host}/{published}:v1")).key
    with pytest.raises(NoSpace, match="too few") as caught:
        node.queue.job(key).wait(60)
    assert caught.value.shortfall > 10_000_000
    assert proxy.bytes_sent() < 100_000
    assert node.model(key).state is State.WAITING  # for room
    assert "too few" in node.model(key).fetch.error


def test_draining(open_node, registry, published):
    """Nothing new is taken, what is here is still shown."""
    node = open_node(registry.host)
    ask = Ask(ref=f"{registry.host}/{published}:v1", include=("*.json",))
    key = arrived(node, node.ensure(ask).key).key
    node.queue.drain()
    assert node.ensure(ask).key == key
    with pytest.raises(Draining):
        node.ensure(Ask(ref=f"{registry.host}/{published}:v1"))


def test_what_the_operator_does_not_allow(open_node, registry, tmp_path):
    """Other registries, addresses of this machine, layouts elsewhere: refused before a request."""
    node = open_node(registry.host)
    with pytest.raises(Denied, match="not an allowed registry"):
        node.ensure(Ask(ref="127.0.0.1:1/a:v1"))
    with pytest.raises(Denied, match="layouts are not allowed"):
        node.ensure(Ask(ref="oci:/etc:v1"))
    with pytest.raises(NotFound):
        node.ensure(Ask(ref=f"oci:{tmp_path / 'none'}:v1"))
    for local in ("127.0.0.1:1", "localhost:1", "169.254.169.254", "[::1]:1", "0.0.0.0:1"):
        with pytest.raises(Denied, match="of this machine"):
            Policy().check(Reference.parse(f"{local}/a:v1"))


def test_watching(open_node, published, proxy):
    """A model is followed to its end; an unknown one is said to be unknown."""
    gate = threading.Event()
    proxy.add("GET .*/blobs/", gate=gate, skip=1, times=1000)
    node = open_node(proxy.host)
    key = node.ensure(Ask(ref=f"{proxy.host}/{published}:v1")).key
    threading.Timer(0.3, gate.set).start()
    states = [model.state for model in node.watch(key, every=0.05)]
    assert states[-1] is State.READY
    assert State.FETCHING in states
    with pytest.raises(NoSuchModel):
        list(node.watch("0" * 40))


def private(registry, name, model, session):
    """Push to a registry with a password; returns the reference by digest, the credential."""
    known = Credential(registry.username, registry.password)

    class Own:
        def get(self, registry, repository):
            return known

    reference = Reference.parse(f"{registry.host}/{name}:v1")
    done = push(str(model), reference, session(credentials=Own()), PushOptions())
    return str(Reference.parse(done.reference)), known


def test_a_grant_spares_the_question(open_node, htpasswd_registry, model, name, session):
    """By digest, for who was allowed, until it expires or is revoked; for nobody else."""
    reference, known = private(htpasswd_registry, name, model, session)
    with fault_proxy(htpasswd_registry.host) as proxy:
        reference = reference.replace(htpasswd_registry.host, proxy.host)
        by_digest = reference.replace(":v1@", "@")
        now = [0.0]
        node = open_node(proxy.host, grants=Grants(600, 3600, lambda: now[0]))
        ask = Ask(ref=by_digest, credential=known)
        arrived(node, node.ensure(ask).key)
        proxy.seen.clear()
        node.ensure(ask)
        assert isinstance(node.lease("pod", ask, Owner(), 1), Lease)
        assert proxy.seen == []
        with pytest.raises(Unauthorized):
            node.ensure(Ask(ref=by_digest, credential=Credential(known.username, "guess")))
        now[0] = 601.0
        proxy.seen.clear()
        node.ensure(ask)
        assert proxy.seen != []
        assert node.grants.revoke(proxy.host + "/" + name) == 1
        proxy.seen.clear()
        node.ensure(ask)
        assert proxy.seen != []


def test_while_the_registry_is_away(open_node, htpasswd_registry, model, name, session):
    """Who was allowed is served up to max_stale, by tag as by digest; strangers are not."""
    reference, known = private(htpasswd_registry, name, model, session)
    now = [0.0]
    with fault_proxy(htpasswd_registry.host) as proxy:
        by_tag = reference.replace(htpasswd_registry.host, proxy.host).partition("@")[0]
        node = open_node(proxy.host, grants=Grants(600, 3600, lambda: now[0]))
        ask = Ask(ref=by_tag, credential=known)
        key = arrived(node, node.ensure(ask).key).key
    assert node.ensure(ask).key == key
    with pytest.raises(Unavailable):
        node.ensure(Ask(ref=by_tag, credential=Credential(known.username, "other")))
    now[0] = 3601.0
    with pytest.raises(Unavailable):
        node.ensure(ask)


def test_who_is_refused_loses_the_grant(open_node, htpasswd_registry, model, name, session):
    """A no of the registry counts more than its earlier yes, also when it is away later."""
    reference, known = private(htpasswd_registry, name, model, session)
    with fault_proxy(htpasswd_registry.host) as proxy:
        by_tag = reference.replace(htpasswd_registry.host, proxy.host).partition("@")[0]
        node = open_node(proxy.host)
        ask = Ask(ref=by_tag, credential=known)
        arrived(node, node.ensure(ask).key)
        rule = proxy.add("GET .*/manifests/", status=403)
        with pytest.raises(Denied):
            node.ensure(ask)
        rule.times = 0
    with pytest.raises(Unavailable):
        node.ensure(ask)


def damage(node, key, path):
    """Flip a bit of a file on the disk, as a disk would: behind everybody's back."""
    file = node.store.tree(key) / path
    before = file.stat()
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.seek(5000)
        byte = opened.read(1)[0]
        opened.seek(5000)
        opened.write(bytes([byte ^ 4]))
    file.chmod(0o444)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("whole", [False, True])
def test_the_scrub_finds_what_the_disk_forgot(
    open_node, registry, model, name, session, monkeypatch, whole
):
    """A damaged file is shown no more, is not used for other versions, and comes again."""
    if whole:
        monkeypatch.setattr("modelpack.checkout.artifact._index_beside", lambda *_: None)
    reference = f"{registry.host}/{name}:v1"
    push(str(model), Reference.parse(reference), session(), PushOptions(modelpack_form=whole))
    node = open_node(registry.host)
    ask = Ask(ref=reference)
    key = arrived(node, node.ensure(ask).key).key
    scrub = Scrub(node.store, 0, 0)
    assert scrub.once() == set()
    assert scrub.bytes_read == node.model(key).bytes_total
    lease = node.lease("pod", ask, Owner("pod"), 10)
    mounted = os.open(node.store.tree(key), os.O_RDONLY)
    damage(node, key, "model-00001-of-00002.safetensors")
    assert len(scrub.once()) == 1
    with pytest.raises(NoSuchModel):
        node.store.snapshot(key)
    assert node.store.leases() == [lease]
    found = arrived(node, node.ensure(ask).key)
    assert found.leases == 1
    assert tree(node.store.tree(key)) == tree(model)
    assert scrub.once() == set()
    assert "config.json" in os.listdir(mounted)  # what the pod has does not go away
    os.close(mounted)
    node.store.release("pod")
    node.store.collect()
    assert {id_ for id_, _ in node.store.files.all()} == node.store.snapshot(key).ids
