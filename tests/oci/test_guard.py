"""Connections that a guard is asked about."""

import socket
import ssl

import pytest
import trustme

from modelpack.oci.guard import literal_address
from modelpack.spec.errors import Denied, ProtocolViolation, Unavailable
from tests.oci.forward import forward_proxy
from tests.oci.scripted import Say, scripted
from tests.support.witness import witness


class Strict:
    """Refuses some addresses; remembers what it was asked."""

    def __init__(self, *refused) -> None:
        self.refused = refused
        self.asked = []

    def __call__(self, host, port, address):
        self.asked.append((host, port, address))
        if address in self.refused:
            raise Denied(f"{host}:{port}: {address}")


@pytest.fixture
def resolver(monkeypatch):
    """Names with addresses that a test gives, a list per question; the last one stays."""
    names, asked = {}, []
    real = socket.getaddrinfo

    def answer(host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        if host not in names:
            return real(host, port, family, type, proto, flags)
        asked.append(host)
        addresses = names[host].pop(0) if len(names[host]) > 1 else names[host][0]
        if isinstance(addresses, OSError):
            raise addresses
        return [
            (
                socket.AF_INET6 if ":" in one else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (one, port),
            )
            for one in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return names, asked


def test_it_is_asked_before_a_connection(remote):
    """With the host, port and address; when it says no, nobody hears of us, and no try follows."""
    with witness() as other:
        guard = Strict("127.0.0.1")
        with pytest.raises(Denied, match=other.host):
            remote(other.host, guard=guard).manifest("v1")
        assert other.connections == 0
    assert guard.asked == [("127.0.0.1", other.port, "127.0.0.1")]


def test_it_is_asked_before_tls(remote):
    """No handshake either."""
    with witness() as other:
        with pytest.raises(Denied):
            remote(other.host, insecure=True, guard=Strict("127.0.0.1")).ping()
        assert other.connections == 0


def test_once_per_connection(remote):
    """A connection that is there already is not asked about again."""
    guard = Strict()
    with scripted(lambda asked: Say(200)) as server:
        repository = remote(server.host, guard=guard)
        repository.ping()
        repository.ping()
    assert len(guard.asked) == 1


def test_a_name_cannot_change_between_check_and_connection(remote, resolver):
    """The address that was checked is the one that is connected to."""
    names, asked = resolver
    names["rebind.example"] = [["127.0.0.1"], ["127.0.0.2"]]
    guard = Strict("127.0.0.2")
    with scripted(lambda asked: Say(200)) as server:
        port = server.host.partition(":")[2]
        remote(f"rebind.example:{port}", plain_http=True, guard=guard).ping()
        assert asked == ["rebind.example"]
        with pytest.raises(Denied):
            remote(f"rebind.example:{port}", plain_http=True, guard=guard).ping()
    assert len(server.asked) == 1


def test_one_bad_address_is_enough(remote, resolver):
    """A name with a good and a bad address is refused, in either order."""
    names, _ = resolver
    with witness() as other:
        for addresses in (["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]):
            names["both.example"] = [addresses]
            with pytest.raises(Denied):
                remote(
                    f"both.example:{other.port}", plain_http=True, guard=Strict("127.0.0.2")
                ).ping()
        assert other.connections == 0


def test_other_addresses_are_tried(remote, resolver):
    """Where the first address does not answer, the next one may."""
    names, _ = resolver
    names["two.example"] = [["127.0.0.3", "127.0.0.1"]]
    with scripted(lambda asked: Say(200)) as server:
        port = server.host.partition(":")[2]
        remote(f"two.example:{port}", plain_http=True, guard=Strict()).ping()
    names["none.example"] = [["127.0.0.3"]]
    with pytest.raises(Unavailable, match="refused"):
        remote("none.example:1", plain_http=True, guard=Strict()).ping()


def test_names_without_addresses(remote, resolver):
    """What is wrong with a name is said as it is without a guard."""
    names, _ = resolver
    names["none.example"] = [socket.gaierror(socket.EAI_NONAME, "Name or service not known")]
    with pytest.raises(Unavailable, match="not known"):
        remote("none.example", guard=Strict()).ping()
    transport = remote("registry.example", guard=Strict())._exchange.transport
    with pytest.raises(ProtocolViolation, match="not a usable address"):
        transport.request("GET", f"http://{'a' * 64}.example/", {})


def test_certificates_are_for_the_name(remote, resolver, tmp_path):
    """Connecting by address does not change what the certificate must say."""
    names, _ = resolver
    names["good.example"] = names["bad.example"] = [["127.0.0.1"]]
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("good.example").configure_cert(context)
    with scripted(lambda asked: Say(200)) as server:
        server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
        port = server.host.partition(":")[2]
        options = {"ca_file": tmp_path / "ca.pem", "guard": Strict()}
        remote(f"good.example:{port}", **options).ping()
        with pytest.raises(Exception, match="not trusted"):
            remote(f"bad.example:{port}", **options).ping()


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "a.localhost"])
def test_through_a_proxy_literals_are_refused(remote, monkeypatch, host):
    """The proxy is not asked for what is a local address in any spelling."""
    guard = Strict("127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1")
    with forward_proxy("127.0.0.1:1") as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy.host}")
        transport = remote("registry.example", guard=guard)._exchange.transport
        for scheme in ("http", "https"):
            with pytest.raises(Denied):
                transport.request("GET", f"{scheme}://{host}/", {})
        assert proxy.asked == []


def test_the_proxy_itself_may_be_anywhere(registry, remote, monkeypatch):
    """The operator chose it, and it resolves names."""
    with forward_proxy(registry.host) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        remote("registry.example", plain_http=True, guard=Strict("127.0.0.1")).ping()
    assert proxy.asked == ["GET http://registry.example/v2/"]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"), ("0177.0.0.1", "127.0.0.1"), ("0x7F000001", "127.0.0.1"),
        ("2852039166", "169.254.169.254"), ("0", "0.0.0.0"), ("LocalHost.", "127.0.0.1"),
        ("[::1]", "::1"), ("fe80::1%eth0", "fe80::1"), ("registry.example", ""), ("a1", ""),
    ],
)  # fmt: skip
def test_addresses_in_all_spellings(host, address):
    """What a resolver would take for an address is one."""
    assert literal_address(host) == address
