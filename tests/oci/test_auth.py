"""Logging in: Basic and Bearer, tokens that expire, servers that ask for too much."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelpack.oci.auth import Authenticator
from modelpack.oci.credentials import NoCredentials
from modelpack.oci.transport import Transport
from modelpack.spec.errors import (
    Denied,
    LimitExceeded,
    ProtocolViolation,
    RegistryError,
    Unauthorized,
    Unavailable,
)
from modelpack.spec.manifest import describe
from modelpack.spec.progress import QUIET
from modelpack.spec.source import Bytes
from tests.conftest import fast
from tests.oci.conftest import Known
from tests.oci.scripted import Say, scripted

SCOPES = ("repository:a/b:pull",)
ANN = Known("ann", "s3cret")


def challenge(realm, **more):
    parameters = {"realm": realm, "service": "test", **more}
    return "Bearer " + ",".join(f'{key}="{value}"' for key, value in parameters.items())


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Tokens:
    """Answers of a token server that counts."""

    def __init__(self, **fields) -> None:
        self.fields = fields
        self.count = 0
        self.lock = threading.Lock()

    def __call__(self, asked):
        with self.lock:
            self.count += 1
            answer = {"token": f"t{self.count}", "expires_in": 100, **self.fields}
        return Say(body=json.dumps(answer).encode())


@pytest.fixture
def authenticator():
    """Make authenticators; their connections are closed."""
    transports = []

    def make(credentials=ANN, *, secure=False, clock=None):
        transports.append(Transport(fast(), "registry.example"))
        return Authenticator(
            "registry.example",
            "a/b",
            credentials,
            transports[-1],
            secure=secure,
            clock=clock or Clock(),
        )

    yield make
    for transport in transports:
        transport.close()


def test_nothing_is_sent_before_it_is_asked_for(authenticator):
    """Before the first challenge there is no header."""
    assert authenticator().header(SCOPES) == ""


def test_a_token_is_fetched_once(authenticator):
    """A token serves until it is about to expire, then a new one is fetched unasked."""
    clock = Clock()
    with scripted(Tokens()) as server:
        auth = authenticator(clock=clock)
        assert auth.answer(challenge(server.url), SCOPES, "") == "Bearer t1"
        clock.now += 79
        assert auth.header(SCOPES) == "Bearer t1"
        clock.now += 2
        assert auth.header(SCOPES) == "Bearer t2"
        assert auth.header(SCOPES) == "Bearer t2"


def test_a_refused_token_is_replaced_by_one_thread(authenticator):
    """Eight threads whose token is refused at once cause one renewal, and share the result."""
    with scripted(Tokens()) as server:
        auth = authenticator()
        first = auth.answer(challenge(server.url), SCOPES, "")
        together = threading.Barrier(8)

        def renew(_):
            together.wait()
            return auth.answer(challenge(server.url), SCOPES, first)

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(renew, range(8))) == {"Bearer t2"}


def test_what_a_token_server_is_asked(authenticator):
    """Service, every scope and the user are in the query; user and password in the header."""
    with scripted(Tokens()) as server:
        scopes = ("repository:a/b:pull,push", "repository:c/d:pull")
        asked = challenge(f"{server.url}/token?tenant=1", scope="repository:a/b:pull")
        authenticator().answer(asked, scopes, "")
    (request,) = server.asked
    assert request.path == (
        "/token?tenant=1&service=test&scope=repository%3Aa%2Fb%3Apull%2Cpush"
        "&scope=repository%3Ac%2Fd%3Apull&scope=repository%3Aa%2Fb%3Apull&account=ann"
    )
    assert request.headers["Authorization"] == "Basic YW5uOnMzY3JldA=="


def test_identity_tokens_are_exchanged(authenticator):
    """An identity token is posted as OAuth 2 wants it, and is never in an address."""
    with scripted(Tokens(token=None, access_token="access")) as server:
        auth = authenticator(Known(identity_token="identity"))
        assert auth.answer(challenge(server.url), SCOPES, "") == "Bearer access"
    (request,) = server.asked
    assert (request.method, request.path) == ("POST", "/")
    assert b"grant_type=refresh_token&refresh_token=identity" in request.body


BAD_TOKENS = {
    "no token": (Say(body=b"{}"), ProtocolViolation),
    "a header in it": (Say(body=json.dumps({"token": "a\r\nX-Evil: 1"}).encode()), ProtocolViolation),
    "not JSON": (Say(body=b"<html>"), ProtocolViolation),
    "a number": (Say(body=b'{"token": 5}'), ProtocolViolation),
    "too large": (Say(body=b"x" * (2 << 20)), LimitExceeded),
    "elsewhere": (Say(302, {"Location": "http://127.0.0.1:1/"}), ProtocolViolation),
    "overloaded": (Say(503, {"Retry-After": "3"}), Unavailable),
    "refused": (Say(401), Unauthorized),
    "forbidden": (Say(403), Unauthorized),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_TOKENS)
def test_bad_answers_of_token_servers(kind, authenticator):
    """Whatever a token server answers ends in one line that does not hold the password."""
    answer, expected = BAD_TOKENS[kind]
    with scripted(lambda asked: answer) as server, pytest.raises(expected) as caught:
        authenticator().answer(challenge(server.url), SCOPES, "")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("realm", ["http://auth.example/token", "http://127.0.0.1:1/"])
def test_credentials_are_not_sent_in_the_clear(authenticator, realm):
    """A registry with TLS cannot have the password sent to a server without."""
    with pytest.raises(RegistryError, match="without TLS"):
        authenticator(secure=True).answer(challenge(realm), SCOPES, "")


@pytest.mark.parametrize(
    "realm", ["", "file:///etc/passwd", "https://", "https://[::1", "//x", "https://a b/"]
)
def test_a_realm_that_is_no_address(authenticator, realm):
    """A token server must have an address."""
    with pytest.raises(ProtocolViolation, match="token server"):
        authenticator().answer(challenge(realm), SCOPES, "")


def test_unknown_authentication(authenticator):
    """A scheme that nobody here knows is named."""
    with pytest.raises(Unauthorized, match="Negotiate"):
        authenticator().answer("Negotiate", SCOPES, "")


def test_basic_is_used_for_every_scope(authenticator):
    """After one challenge user and password go with every request."""
    auth = authenticator()
    header = auth.answer('Basic realm="r"', SCOPES, "")
    assert header == "Basic YW5uOnMzY3JldA=="
    assert auth.header(("repository:other:pull",)) == header
    with pytest.raises(Unauthorized) as caught:
        auth.answer('Basic realm="r"', SCOPES, header)
    assert caught.value.hint == "modelpack login registry.example"


def test_anonymous_where_a_password_is_wanted(authenticator):
    """Without credentials a registry that wants them leads to the login."""
    with pytest.raises(Unauthorized) as caught:
        authenticator(NoCredentials()).answer('Basic realm="r"', SCOPES, "")
    assert caught.value.hint == "modelpack login registry.example"


def test_a_second_refusal_is_final(remote):
    """Fresh credentials that are refused too are not tried a third time."""
    basic = Say(401, {"WWW-Authenticate": 'Basic realm="r"'})
    with scripted(lambda asked: basic) as server:
        with pytest.raises(Unauthorized) as caught:
            remote(server.host, credentials=ANN).tags()
        assert caught.value.hint == f"modelpack login {server.host}"
        assert len(server.asked) == 2


def test_a_login_that_is_not_enough(token_registry, remote):
    """Who is known but not allowed is told that, and not to log in."""
    tokens = token_registry.extra["tokens"]

    def issue(query, authorization, original=tokens.issue):
        return original({**query, "scope": []}, authorization)

    tokens.issue = issue
    try:
        with pytest.raises(Denied, match="not allowed"):
            remote(token_registry.host, "private/x", credentials=ANN).tags()
    finally:
        del tokens.issue


def test_a_login_without_a_repository(token_registry, htpasswd_registry, remote):
    """Credentials are tried without asking for any repository, as `docker login` does."""
    remote(token_registry.host, "", credentials=ANN).ping()
    asked = token_registry.extra["tokens"].requests[-1]["query"]
    assert "scope" not in asked
    remote(htpasswd_registry.host, "", credentials=Known("ann", "s3cret:word")).ping()


def test_an_upload_whose_token_expires(remote, registry, proxy):
    """A refusal in the middle of a body renews the token, and the upload goes on."""
    tokens = Tokens()
    data = bytes(range(256)) * 40_000
    content = Bytes(describe("t", data), data)
    with scripted(tokens) as server:
        refusal = {"WWW-Authenticate": challenge(server.url)}
        proxy.add("PATCH ", status=401, headers=refusal, times=1)
        repository = remote(proxy.host, credentials=ANN)
        repository.put_blob(content, QUIET)
    assert repository.stat_blob(content.blob.digest) == len(data)
    assert [one.headers.get("Authorization") for one in proxy.requests("PATCH")] == [
        None,
        "Bearer t1",
    ]


def test_an_upload_that_is_always_refused(remote, proxy):
    """If the new token is refused as well, the upload ends, with what to do."""
    data = bytes(range(256)) * 40_000
    with scripted(Tokens()) as server:
        proxy.add("PATCH ", status=401, headers={"WWW-Authenticate": challenge(server.url)})
        with pytest.raises(Unauthorized) as caught:
            remote(proxy.host, credentials=ANN).put_blob(Bytes(describe("t", data), data), QUIET)
    assert caught.value.hint == f"modelpack login {proxy.host}"
    assert len(proxy.requests("PATCH")) == 2
