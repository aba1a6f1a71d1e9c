"""What networks and registries do to a transfer, through a proxy before a real registry."""

import http.server
import threading

import pytest

from modelpack.oci.remote import RemoteRepository
from modelpack.spec import media
from modelpack.spec.errors import (
    Denied,
    IntegrityError,
    LimitExceeded,
    ProtocolViolation,
    Rejected,
    Unauthorized,
    Unavailable,
)
from modelpack.spec.manifest import describe
from modelpack.spec.progress import QUIET, Counter
from modelpack.spec.reference import Reference
from modelpack.spec.source import Bytes
from modelpack.verbs.pull import PullOptions, pull
from modelpack.verbs.push import PushOptions, push
from tests.conftest import fast
from tests.support.faults import fault_proxy
from tests.support.weights import tree

DATA = bytes(range(256)) * 100_000  # 25.6 MB


@pytest.fixture
def pushed(registry, name, model, session):
    reference = Reference.parse(f"{registry.host}/{name}:v1")
    push(str(model), reference, session(), PushOptions())
    return name


def through(proxy, name):
    return Reference.parse(f"{proxy.host}/{name}:v1")


TROUBLES = {
    "rate limited": {"status": 429, "headers": {"Retry-After": "1"}, "times": 2},
    "overloaded": {"status": 503, "times": 2},
    "bad gateway": {"status": 502, "body": b"<html>oops</html>", "times": 1},
    "reset": {"reset_after": 1_500_000, "times": 2},
    "reset at once": {"reset_after": 0, "times": 2},
    "cut": {"cut": 100_000, "times": 2},
    "flipped bit": {"flip": 1000, "times": 1},
    "ranges ignored": {"ignore_range": True},
    "stall": {"stall_after": 70_000, "times": 1},
    "wrong range": {"replace_headers": {"Content-Range": "bytes 5-9/10"}, "times": 1},
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_pulls_survive(trouble, proxy, pushed, model, tmp_path, session):
    """Whatever happens to blobs on their way, the pull ends with the right bytes."""
    proxy.add(r"GET .*/blobs/", **TROUBLES[trouble])
    pull(through(proxy, pushed), tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == tree(model)


def test_a_broken_stream_costs_little(proxy, pushed, model, tmp_path, session):
    """After a reset, only what was not verified is fetched again."""
    proxy.add(r"GET .*/blobs/", reset_after=3_000_000, times=1)
    pull(through(proxy, pushed), tmp_path / "out", session(jobs=1), PullOptions())
    total = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    assert proxy.bytes_sent() < total + 4.5e6


LIES = {
    "too much announced": ({"replace_headers": {"Content-Length": "99999999"}}, ProtocolViolation),
    "too little announced": ({"replace_headers": {"Content-Length": "10"}}, ProtocolViolation),
    "always another range": (
        {"replace_headers": {"Content-Range": "bytes 0-9/10"}},
        ProtocolViolation,
    ),
    "always a flipped bit": ({"flip": 5000}, IntegrityError),
    "always down": ({"status": 503}, Unavailable),
    "forbidden": ({"status": 403}, Denied),
    "gone": ({"status": 410}, Rejected),
    "stalled for ever": ({"stall_after": 1000}, Unavailable),
    "redirects in circles": (
        {"status": 307, "headers": {"Location": "/v2/x/blobs/sha256:1"}},
        ProtocolViolation,
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_end_in_an_error_and_an_untouched_target(lie, proxy, pushed, tmp_path, session):
    """What stays wrong is named in one line; the target does not appear."""
    what, expected = LIES[lie]
    proxy.add(r"GET .*/blobs/", **what)
    with pytest.raises(expected) as caught:
        pull(through(proxy, pushed), tmp_path / "out", session(stall_seconds=0.3), PullOptions())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_trickle_is_a_stall(proxy, registry, name):
    """A connection that is kept open with a byte now and then is given up."""
    repository = RemoteRepository(registry.host, name, fast())
    content = Bytes(describe("t", DATA), DATA)
    repository.put_blob(content, QUIET)
    repository.close()
    proxy.add(r"GET .*/blobs/", slice_pause=(10, 0.05))
    slow = RemoteRepository(proxy.host, name, fast(stall_seconds=0.4, trickle_bytes=10_000))
    with (
        pytest.raises(Unavailable, match="too slow"),
        slow.open(content.blob, 0, content.blob.size) as stream,
    ):
        while stream.read(100):
            pass
    slow.close()


def test_endless_manifests_are_not_read(proxy, pushed, tmp_path, session):
    """A manifest of two gigabytes, announced or not, is refused after four megabytes."""
    for headers in ({"Content-Length": str(2 << 30)}, {"Content-Length": None}):
        proxy.rules.clear()
        proxy.add(r"GET .*/manifests/", replace_headers=headers)
        with pytest.raises((LimitExceeded, Unavailable, IntegrityError)):
            with Endless() as endless:
                address = Reference.parse(f"{endless.host}/a/b:v1")
                pull(address, tmp_path / "out", session(), PullOptions())
        assert endless.sent < 64 << 20
    assert not (tmp_path / "out").exists()


class Endless:
    """A "registry" whose manifests never end."""

    def __enter__(self):
        outer = self
        self.sent = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", media.OCI_MANIFEST)
                self.end_headers()
                try:
                    while outer.sent < 2 << 30:
                        self.wfile.write(b" " * (1 << 20))
                        outer.sent += 1 << 20
                except OSError:
                    pass

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


UPLOADS = {
    "rate limited": {"status": 429, "headers": {"Retry-After": "1"}, "times": 2},
    "overloaded": {"status": 503, "times": 2},
    "reset": {"drop_upload_after": 5_000_000, "times": 2},
    "no chunks": {"status": 404, "times": 1},
}


@pytest.mark.parametrize("trouble", UPLOADS)
def test_uploads_survive(trouble, proxy, registry, name):
    """Whatever happens to an upload, the registry ends with the right bytes, counted once."""
    proxy.add(r"PATCH ", **UPLOADS[trouble])
    repository = RemoteRepository(proxy.host, name, fast())
    counter = Counter(QUIET)
    content = Bytes(describe("t", DATA), DATA)
    repository.put_blob(content, counter)
    assert repository.stat_blob(content.blob.digest) == len(DATA)
    assert counter.total == len(DATA)
    repository.close()


def test_small_uploads_survive_too(proxy, name):
    """A blob that is sent in one request is sent again."""
    proxy.add(r"PUT .*/uploads/", drop_upload_after=100_000, times=2)
    repository = RemoteRepository(proxy.host, name, fast())
    content = Bytes(describe("t", DATA[:2_000_000]), DATA[:2_000_000])
    repository.put_blob(content, QUIET)
    assert repository.stat_blob(content.blob.digest) == 2_000_000
    repository.close()


def test_a_body_that_is_too_large_is_explained(proxy, name):
    """413 in the middle of a body is read, not reported as a broken pipe."""
    proxy.add(r"PATCH |PUT ", status=413)
    repository = RemoteRepository(proxy.host, name, fast())
    with pytest.raises(Rejected) as caught:
        repository.put_blob(Bytes(describe("t", DATA), DATA), QUIET)
    assert "smaller shards" in caught.value.hint
    repository.close()


def test_credentials_stay_at_home(registry, name, htpasswd_registry, tmp_path, model, session):
    """A redirect of a blob to another host is followed without the Authorization header."""
    from modelpack.oci.credentials import Credential

    class Ann:
        def get(self, _registry, _repository):
            return Credential("ann", "s3cret:word")

    options = {"credentials": Ann()}
    push(
        str(model),
        Reference.parse(f"{htpasswd_registry.host}/{name}:v1"),
        session(**options),
        PushOptions(),
    )
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    with fault_proxy(htpasswd_registry.host) as front, fault_proxy(registry.host) as store:

        def redirect(seen):
            return f"http://{store.host}{seen}"

        original = front._rule

        def rule(seen):
            found = original(seen)
            if "/blobs/sha256:" in seen.path and seen.method == "GET":
                found.status, found.headers = 307, {"Location": redirect(seen.path)}
            return found

        front._rule = rule
        out = tmp_path / "out"
        pull(Reference.parse(f"{front.host}/{name}:v1"), out, session(**options), PullOptions())
        assert tree(out) == tree(model)
        assert any("Authorization" in one.headers for one in front.requests("manifests"))
        assert store.requests("GET .*/blobs/")
        assert not any("Authorization" in one.headers for one in store.seen)


def test_expired_tokens_are_renewed(tmp_path, name, model, session):
    """Tokens that live two seconds do not disturb a slow transfer."""
    from modelpack.oci.credentials import Credential
    from tests.support.tokens import token_registry

    class Ann:
        def get(self, _registry, _repository):
            return Credential("ann", "s3cret")

    with (
        token_registry(tmp_path / "tokens", seconds=2) as registry,
        fault_proxy(registry.host) as proxy,
    ):
        reference = Reference.parse(f"{proxy.host}/{name}:v1")
        proxy.add(r"GET .*/blobs/", slice_pause=(200_000, 0.1))
        push(str(model), reference, session(credentials=Ann()), PushOptions())
        pull(reference, tmp_path / "out", session(credentials=Ann()), PullOptions())
        assert tree(tmp_path / "out") == tree(model)
        assert len(registry.extra["tokens"].requests) > 2


@pytest.mark.parametrize("user", [None, "wrong"])
def test_missing_and_wrong_credentials_say_how_to_log_in(
    user, htpasswd_registry, token_registry, model, session
):
    """Both kinds of registries lead to one line and `modelpack login`."""
    from modelpack.oci.credentials import Credential

    class Somebody:
        def get(self, _registry, _repository):
            return Credential(user, user) if user else None

    for registry in (htpasswd_registry, token_registry):
        reference = Reference.parse(f"{registry.host}/private/x:v1")
        with pytest.raises(Unauthorized) as caught:
            push(str(model), reference, session(credentials=Somebody()), PushOptions())
        assert caught.value.hint == f"modelpack login {registry.host}"


def test_what_is_public_needs_no_credentials(token_registry, model, tmp_path, session):
    """An anonymous token is enough to pull; identity tokens are exchanged."""
    from modelpack.oci.credentials import Credential

    class Identity:
        def get(self, _registry, _repository):
            return Credential(identity_token="identity-of-ann")

    reference = Reference.parse(f"{token_registry.host}/public/m:v1")
    push(str(model), reference, session(credentials=Identity()), PushOptions())
    pull(reference, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == tree(model)
