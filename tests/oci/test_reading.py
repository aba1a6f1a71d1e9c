"""Reading blobs: redirects, ranges, and answers that are not what they should be."""

import ssl

import pytest
import trustme

from modelpack.oci.pace import Pace
from modelpack.spec import media
from modelpack.spec.errors import (
    Denied,
    NotFound,
    ProtocolViolation,
    RangeIgnored,
    Unauthorized,
    Unavailable,
)
from modelpack.spec.manifest import describe
from modelpack.spec.progress import QUIET
from modelpack.spec.source import Bytes
from tests.contract.contents import read
from tests.oci.conftest import Known
from tests.oci.scripted import Say, scripted
from tests.support.faults import fault_proxy

DATA = bytes(range(256)) * 1000
BLOB = describe(media.OCTETS, DATA)


def ranged(asked, data=DATA):
    """Answer as a web server does."""
    wanted = asked.headers.get("Range", "").removeprefix("bytes=")
    if not wanted:
        return Say(200, body=data)
    first, last = map(int, wanted.split("-"))
    return Say(206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1])


def test_the_target_of_a_redirect_is_remembered(remote):
    """The second range is asked for where the registry sent us for the first one."""
    with scripted(ranged) as store:
        to = Say(307, {"Location": f"{store.url}/blob?signature=1"})
        with scripted(lambda asked: to) as server:
            repository = remote(server.host)
            assert read(repository, BLOB, 0, 1000) == DATA[:1000]
            assert read(repository, BLOB, 1000, 1000) == DATA[1000:2000]
    assert (len(server.asked), len(store.asked)) == (1, 2)


@pytest.mark.parametrize("status", [400, 403, 404, 410, 503])
def test_expired_addresses_are_asked_for_again(remote, status):
    """When the address that was remembered does not serve any more, the registry gives a new one."""

    def expiring(asked):
        return ranged(asked) if "signature=2" in asked.path or len(store.asked) < 1 else Say(status)

    with scripted(expiring) as store:

        def redirect(asked):
            return Say(307, {"Location": f"{store.url}/?signature={len(server.asked) + 1}"})

        with scripted(redirect) as server:
            repository = remote(server.host)
            assert read(repository, BLOB, 0, 10) == DATA[:10]
            assert read(repository, BLOB, 10, 10) == DATA[10:20]
            assert read(repository, BLOB, 20, 10) == DATA[20:30]
    assert len(server.asked) == 2


def test_a_store_that_has_gone(remote):
    """When the remembered host cannot be reached, the registry is asked for another."""
    with scripted(ranged) as second:
        with scripted(ranged) as first:
            stores = [first.url, second.url]
            server = scripted(lambda asked: Say(307, {"Location": stores.pop(0)}))
            with server as running:
                repository = remote(running.host)
                assert read(repository, BLOB, 0, 10) == DATA[:10]
                first.server.shutdown()
                first.server.server_close()
                repository._exchange.transport.close()
                assert read(repository, BLOB, 10, 10) == DATA[10:20]
    assert len(second.asked) == 1


@pytest.mark.parametrize(
    "location",
    [
        "",
        "ftp://h/x",
        "file:///etc/passwd",
        "http://",
        "//",
        "http://[::1",
        "http://h:0/",
        "http://h\x01/",
        "http://user:secret@h/x",
        "http://other.example\\@{host}/x",
        "http://other.example\\{host}/x",
        "http://{host}\\@other.example/x",
    ],
)
def test_redirects_to_nowhere(remote, location):
    """A redirect must lead to an address of the web, without secrets in the error."""

    def answer(asked):
        return Say(307, {"Location": location.replace("{host}", asked.headers["Host"])})

    with scripted(answer) as server:
        with pytest.raises(ProtocolViolation) as caught:
            read(remote(server.host), BLOB)
        assert len(server.asked) <= 6
    assert "\n" not in str(caught.value)


def test_redirects_end(remote):
    """Five redirects are followed, a sixth is not."""

    def hop(asked):
        number = int(asked.path.rpartition("=")[2]) if "=" in asked.path else 0
        return Say(302, {"Location": f"/hop?n={number + 1}"}) if number < most else ranged(asked)

    with scripted(hop) as server:
        most = 5
        assert read(remote(server.host), BLOB, 0, 10) == DATA[:10]
        most = 6
        with pytest.raises(ProtocolViolation, match="more than 5"):
            read(remote(server.host), BLOB, 0, 10)


def test_a_redirect_from_tls_to_none(tls_registry, registry, remote, name):
    """A registry with TLS cannot send us to a server without."""
    with fault_proxy(registry.host) as plain:
        repository = remote(tls_registry.host, ca_file=tls_registry.extra["ca"])
        exchange = repository._exchange
        with pytest.raises(ProtocolViolation, match="from TLS"):
            exchange.resolve(f"http://{plain.host}/x", exchange.url("blobs/x"))
        assert exchange.resolve("/x", exchange.url("blobs/x")) == f"https://{tls_registry.host}/x"


def test_the_password_stays_with_host_and_port(remote):
    """Another port of the same host is another server; signatures are not shown in errors."""
    with scripted(lambda asked: Say(403)) as store:

        def answer(asked):
            if "Authorization" not in asked.headers:
                return Say(401, {"WWW-Authenticate": "Basic realm=r"})
            return Say(307, {"Location": f"{store.url}/?X-Amz-Signature=s3cret"})

        with scripted(answer) as server:
            with pytest.raises(Denied) as caught:
                read(remote(server.host, credentials=Known("ann", "pw")), BLOB)
    assert "Authorization" not in store.asked[0].headers
    assert "s3cret" not in str(caught.value)


def test_one_failure_is_one_request(remote):
    """Opening a range is tried once: who reads decides where to go on."""
    with scripted(lambda asked: Say(503, {"Retry-After": "3"})) as server:
        with pytest.raises(Unavailable) as caught:
            read(remote(server.host), BLOB)
        assert len(server.asked) == 1
    assert caught.value.retry_after == 3


ANSWERS = {
    "whole instead of range": (lambda asked: Say(200, body=DATA), RangeIgnored),
    "another range": (lambda asked: Say(206, {"Content-Range": "bytes 0-9/10"}, DATA[:10]), ProtocolViolation),
    "no range named": (lambda asked: Say(206, {}, DATA[10:30]), ProtocolViolation),
    "length announced wrongly": (
        lambda asked: Say(206, ranged(asked).headers, DATA, length=len(DATA)), ProtocolViolation),
    "length absurd": (lambda asked: Say(206, ranged(asked).headers, DATA[10:30], length=10**4000), Unavailable),
    "ends early": (lambda asked: Say(206, ranged(asked).headers, DATA[10:20], length=None), ProtocolViolation),
    "goes on": (lambda asked: Say(206, ranged(asked).headers, DATA[10:40], length=None), ProtocolViolation),
    "416 with the length of the blob": (lambda asked: Say(416, length=10**12), ProtocolViolation),
    "error with an endless body": (lambda asked: Say(404, body=b"x" * 1000, length=10**12), NotFound),
    "unauthorised elsewhere": (lambda asked: Say(401), Unauthorized),
    "no status of ours": (lambda asked: Say(299), ProtocolViolation),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_that_are_not_what_they_should_be(kind, remote):
    """Every deviation from what was asked is an error of its kind, in bounded time."""
    answer, expected = ANSWERS[kind]
    with scripted(answer) as server, pytest.raises(expected) as caught:
        read(remote(server.host), BLOB, 10, 20)
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)


def test_a_body_without_a_length(remote):
    """A server that does not announce a length is read to its end."""
    with scripted(lambda asked: Say(200, body=DATA, length=None)) as server:
        assert read(remote(server.host), BLOB) == DATA


def test_a_blob_whose_size_is_not_said(remote):
    """A size that the registry does not tell is not taken for zero."""
    with scripted(lambda asked: Say(200, length=None)) as server:
        with pytest.raises(ProtocolViolation, match="how large"):
            remote(server.host).stat_blob(BLOB.digest)


def test_the_words_of_a_registry(remote):
    """Code and message of an error are shown, made harmless and short."""
    said = b'{"errors":[{"code":"DENIED","message":"\\u001b[2Jgo away ' + b"x" * 500 + b'"}]}'
    with scripted(lambda asked: Say(403, body=said)) as server, pytest.raises(Denied) as caught:
        read(remote(server.host), BLOB)
    assert "DENIED: ?[2Jgo away" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_registry_that_is_not_there(remote):
    """A port that nobody listens on is a trouble that may pass."""
    with pytest.raises(Unavailable, match="refused"):
        read(remote("127.0.0.1:1"), BLOB)


def test_416_of_the_real_registry(registry, remote):
    """docker-registry announces the whole blob with a 416 and sends nothing: we do not wait."""
    repository = remote(registry.host)
    repository.put_blob(Bytes(BLOB, DATA), QUIET)
    larger = type(BLOB)(BLOB.media_type, BLOB.digest, BLOB.size + 100)
    with pytest.raises(ProtocolViolation, match="does not have the range"):
        read(repository, larger, BLOB.size + 1, 10)
    assert read(repository, BLOB) == DATA


def test_a_connection_is_used_again(registry, remote):
    """Ranges that are read to their end leave the connection open for the next."""
    with fault_proxy(registry.host) as proxy:
        repository = remote(proxy.host)
        repository.put_blob(Bytes(BLOB, DATA), QUIET)
        accepted = []
        original = proxy.server.process_request

        def counting(request, address):
            accepted.append(address)
            original(request, address)

        proxy.server.process_request = counting
        for offset in range(0, 1000, 100):
            read(repository, BLOB, offset, 100)
        assert len(accepted) <= 1


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_pace_is_judged_by_whole_windows():
    """Ten bytes a second over every ten seconds: less stops the read, more never does."""
    clock, stopped = Clock(), []
    pace = Pace(10, 10, lambda: stopped.append(clock.now), clock)
    for received, seconds in ((50, 5), (50, 5), (0, 9), (100, 1), (99, 9)):
        pace.start()
        clock.now += seconds
        pace.end(received)
    assert not pace.too_slow
    pace.start()
    clock.now += 2
    pace.look()
    assert pace.too_slow
    assert stopped == [clock.now]


def test_the_readers_own_time_does_not_count():
    """Who takes a minute to write to a disk is not told that the registry is slow."""
    clock = Clock()
    pace = Pace(10, 10, lambda: pytest.fail("stopped"), clock)
    for _ in range(5):
        pace.start()
        clock.now += 1
        pace.end(20)
        clock.now += 60
        pace.look()
    assert not pace.too_slow


def test_fast_senders_are_asked_for_more_at_a_time():
    """Many small reads cost; a slow sender must not be judged by a large one that is under way."""
    clock = Clock()
    pace = Pace(16, 1000, lambda: pytest.fail("stopped"), clock)
    slices = []
    for received, seconds in ((16_000, 0.1), (32_000, 0.9), (100, 0.1), (64_000, 1.1), (16_000, 0)):
        slices.append(pace.slice)
        pace.start()
        clock.now += seconds
        pace.end(received)
    assert slices == [16_000, 32_000, 64_000, 64_000, 16_000]
    for _ in range(20):
        pace.start()
        pace.end(pace.slice)
    assert pace.slice == 4 << 20


@pytest.mark.parametrize("tls", [False, True])
def test_a_trickle_is_ended_from_outside(tls, remote, tmp_path):
    """A read that would wait for days for its last byte is ended, with TLS as without."""
    options = {"stall_seconds": 0.3, "trickle_bytes": 100_000}
    trickle = Say(200, body=DATA[:10], length=len(DATA), trickle=True)
    with scripted(lambda asked: trickle) as server:
        if tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(tmp_path / "ca.pem")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
            options["ca_file"] = tmp_path / "ca.pem"
        with pytest.raises(Unavailable, match="too slowly"):
            read(remote(server.host, **options), BLOB)


def test_a_small_answer_that_never_ends(remote, monkeypatch):
    """A manifest that comes byte by byte is given up, too."""
    monkeypatch.setattr("modelpack.oci.answers.BODY_SECONDS", 0.2)
    trickle = Say(200, {"Content-Type": media.OCI_MANIFEST}, length=1000, trickle=True)
    with scripted(lambda asked: trickle) as server:
        with pytest.raises(Unavailable, match="takes too long"):
            remote(server.host).manifest("v1")
