"""What the daemon cannot be talked into: requests to its own machine, and to the cloud's metadata."""

import socket

import pytest

from cache_daemon.fetch.access import Access, Policy
from cache_daemon.fetch.addresses import forbidden
from cache_daemon.fetch.trust import Trust
from modelpack.oci.credentials import Credential
from modelpack.spec.errors import (
    Denied,
    InputError,
    ModelpackError,
    ProtocolViolation,
    RegistryError,
    Unavailable,
)
from modelpack.spec.manifest import describe
from modelpack.spec.progress import QUIET
from modelpack.spec.reference import Reference
from modelpack.spec.source import Bytes
from tests.conftest import fast
from tests.contract.contents import read
from tests.oci.forward import forward_proxy
from tests.oci.scripted import Say, scripted
from tests.support.witness import witness

BLOB = describe("application/octet-stream", b"weights")
ANN = Credential("ann", "s3cret")
MULTICAST, BROADCAST = ("224.0.0.1", "ff02::1"), ("255.255.255.255",)


@pytest.fixture
def open_repository():
    """Open repositories as the daemon does; closed at the end."""
    opened = []

    def open_(policy, reference, credential=None, **connect):
        access = Access(policy, fast(**connect))
        opened.append(access.repository(Reference.parse(reference), credential))
        return opened[-1]

    yield open_
    for repository in opened:
        repository.close()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.8.7", "localhost", "0.0.0.0", "127.1", "2130706433", "0177.0.0.1",
     "0x7f.0.0.1", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]"],
)  # fmt: skip
def test_a_registry_that_nobody_named(open_repository, host):
    """This machine, however it is spelled, does not even see a connection."""
    with witness() as other:
        repository = open_repository(Policy(), f"{host}:{other.port}/a:v1")
        with pytest.raises(Denied, match="not allowed here"):
            repository.manifest("v1")
        with pytest.raises(Denied):
            repository.open(BLOB, 0, 7)
        assert other.connections == 0


def test_a_registry_that_is_named(open_repository):
    """It is connected to (and the witness of these tests sees it)."""
    with witness() as other:
        repository = open_repository(
            Policy((f"{other.host}/a",)), f"{other.host}/a/b:v1", stall_seconds=0.01
        )
        with pytest.raises(Unavailable):
            repository.open(BLOB, 0, 7)
        assert other.connections == 1


def test_a_machines_own_address(open_repository):
    """Neither do its services behind the address that others know it by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address")
        own = probe.getsockname()[0]
    with witness() as other:
        with pytest.raises(Denied, match="this machine"):
            open_repository(Policy(), f"{own}:{other.port}/a:v1").manifest("v1")
        assert other.connections == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_token_realm(open_repository, scheme):
    """A registry cannot send us, with credentials at that, to another port of this machine."""
    with witness() as other:
        realm = f'Bearer realm="{scheme}://127.0.0.1:{other.port}/token",service="s"'
        with scripted(lambda asked: Say(401, {"WWW-Authenticate": realm})) as server:
            policy = Policy((server.host,))
            repository = open_repository(policy, f"{server.host}/a:v1", ANN)
            with pytest.raises(Denied, match=other.host):
                repository.manifest("v1")
        assert other.connections == 0
        assert len(server.asked) == 1  # and it is not tried again


def test_a_token_server_that_is_named(open_repository, token_registry, name):
    """With --trusted-hosts it is asked."""
    tokens = token_registry.extra["tokens"].url.split("/")[2]
    known = Credential(token_registry.username, token_registry.password)
    reference = f"{token_registry.host}/{name}:v1"
    with pytest.raises(Denied, match=tokens):
        open_repository(Policy((token_registry.host,)), reference, known).tags()
    policy = Policy((token_registry.host,), trusted=(tokens,))
    open_repository(policy, reference, known).put_blob(Bytes(BLOB, b"weights"), QUIET)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_redirect(open_repository, scheme):
    """A registry cannot send us to another port of this machine for a blob, or a manifest."""
    with witness() as other:
        to = Say(307, {"Location": f"{scheme}://127.0.0.1:{other.port}/latest/meta-data"})
        with scripted(lambda asked: to) as server:
            repository = open_repository(Policy((server.host,)), f"{server.host}/a:v1")
            for ask in (
                lambda: repository.open(BLOB, 0, 7),
                lambda: repository.manifest("v1"),
                lambda: repository.stat_blob(BLOB.digest),
            ):
                with pytest.raises(Denied, match=other.host):
                    ask()
        assert other.connections == 0


def test_a_redirect_to_what_is_named(open_repository, registry, proxy, name):
    """With --trusted-hosts object storage may be on this machine."""
    reference = f"{proxy.host}/{name}:v1"
    open_repository(Policy((proxy.host,)), reference).put_blob(Bytes(BLOB, b"weights"), QUIET)
    proxy.add("GET .*/blobs/", redirect_to=registry.host)
    with pytest.raises(Denied, match=registry.host):
        read(open_repository(Policy((proxy.host,)), reference), BLOB)
    policy = Policy((proxy.host,), trusted=(registry.host,))
    assert read(open_repository(policy, reference), BLOB) == b"weights"


def test_a_remembered_place_that_moves_here(open_repository, monkeypatch):
    """Object storage whose name is given a local address later is not asked there."""
    here, real = ["203.0.113.1"], socket.getaddrinfo

    def answer(host, port, *rest, **more):
        return real(here[0] if host == "store.example" else host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with witness() as other:
        to = Say(307, {"Location": f"http://store.example:{other.port}/"})
        with scripted(lambda asked: to) as server:
            policy = Policy((server.host,))
            repository = open_repository(policy, f"{server.host}/a:v1", connect_seconds=0.01)
            with pytest.raises(RegistryError) as caught:
                repository.open(BLOB, 0, 7)
            assert not isinstance(caught.value, Denied)
            here[0] = "127.0.0.1"
            with pytest.raises(Denied, match="store"):
                repository.open(BLOB, 0, 7)
        assert other.connections == 0


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
@pytest.mark.parametrize(
    "shape",
    ["://{h}/", "://a:b@{h}/x", "://{h}#@store.example/", "://{h}?@store.example/", ":/{h}/", ":{h}/",
     ":///{h}/", ":\\\\{h}\\", "://localhost\\@{h}/", "://\t{h}/", "://{h}\\@localhost/"],
)  # fmt: skip
@pytest.mark.parametrize("proxied", [False, True])
def test_addresses_that_parsers_differ_over(open_repository, monkeypatch, scheme, shape, proxied):
    """Whoever reads a URL differently from the library that connects does not get around it."""
    hosts = (
        "127.1",
        "0x7f000001",
        "[::ffff:127.0.0.1]",
        "%31%32%37.0.0.1",
        "127%2e0.0.1",
        "[::1%25lo]",
    )
    with witness() as other, forward_proxy(other.host) as proxy:
        if proxied:
            for name in ("HTTP_PROXY", "HTTPS_PROXY"):
                monkeypatch.setenv(name, f"http://{proxy.host}")
        repository = open_repository(Policy(), "registry.example/a:v1")
        for host in hosts:
            url = scheme + shape.format(h=f"{host}:{other.port}")
            with pytest.raises(ModelpackError):
                repository._exchange.transport.request("GET", url, {})
        assert other.connections == 0
        assert proxy.asked == []


def test_no_tls_is_for_named_loopback_only(open_repository, tls_registry):
    """A registry with TLS cannot lead to a token server, or storage, without."""
    policy = Policy((tls_registry.host,), trusted=("127.0.0.1:1",))
    reference = f"{tls_registry.host}/a:v1"
    repository = open_repository(policy, reference, ANN, ca_file=tls_registry.extra["ca"])
    exchange = repository._exchange
    with pytest.raises(ProtocolViolation, match="from TLS"):
        exchange.resolve("http://127.0.0.1:1/x", exchange.url("blobs/x"))
    with pytest.raises(RegistryError, match="without TLS"):
        exchange._auth.answer('Bearer realm="http://127.0.0.1:1/token"', ("repository:a:pull",), "")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.255.255.254", "::1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "0.0.0.0",
     "0.1.2.3", "::", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1",
     "::ffff:169.254.169.254", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::169.254.169.254",
     "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::", "fd00:ec2::254", "100.100.100.200",
     "168.63.129.16", "fd20:ce::254", "no address", *MULTICAST, *BROADCAST],
)  # fmt: skip
def test_forbidden_addresses(address):
    """Loopback, link-local, multicast, unspecified, metadata; also where IPv6 stands for them."""
    assert forbidden(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "10.1.2.3", "172.16.0.9", "192.168.1.2", "100.64.0.1", "fd12:3456::1",
     "2606:4700::1111", "64:ff9b::1.1.1.1", "::ffff:10.1.2.3", "2002:0a01:203::1"],
)  # fmt: skip
def test_other_addresses(address):
    """Public and private ones are fine: registries have them."""
    assert forbidden(address) == ""


def test_what_is_named_is_host_and_port():
    """Ports count; without one, those of HTTP; addresses in any spelling."""
    trust = Trust.of(["127.0.0.1:5000", "Store.example", "[0::1]:443"])
    for host, port, address in (
        ("127.0.0.1", 5000, "127.0.0.1"), ("store.example", 443, "127.0.0.1"),
        ("store.example.", 80, "::1"), ("::1", 443, "::1"),
    ):  # fmt: skip
        trust.check(host, port, address)
    for host, port in (("127.0.0.1", 5001), ("store.example", 8080), ("::1", 80), ("x", 5000)):
        with pytest.raises(Denied) as caught:
            trust.check(host, port, "127.0.0.1")
        assert "\n" not in str(caught.value)
        assert "--trusted-hosts" in caught.value.hint


@pytest.mark.parametrize("named", ["", "https://x", "a:b", "x:0", "x:65536", "a b", "[::1", "x/y"])
def test_what_is_no_host(named):
    """A setting that names no host is refused at once."""
    with pytest.raises(InputError, match="HOST"):
        Policy(trusted=(named,))
