"""Uploads that are interrupted, refused or misunderstood."""

import signal
import subprocess
import sys

import pytest

from modelpack.oci import upload
from modelpack.oci.upload_log import MemoryUploadLog
from modelpack.spec.errors import IntegrityError, ProtocolViolation, Rejected, Unavailable
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import describe
from modelpack.spec.progress import QUIET, Counter
from modelpack.spec.source import Bytes
from tests.contract.contents import Watched
from tests.oci.scripted import Say, scripted
from tests.support.faults import wait_until


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(upload, "CHUNK", 2 * MIB)


@pytest.fixture
def data(request):
    """9 MiB that no other test puts."""
    import random

    return random.Random(request.node.nodeid).randbytes(9 * MIB)


def put(repository, content):
    counter = Counter(QUIET)
    repository.put_blob(content, counter)
    assert repository.stat_blob(content.blob.digest) == content.blob.size
    return counter.total


def test_refused_chunks_are_sent_again_from_there(remote, proxy, data):
    """A chunk that was not taken is repeated; those before it are not."""
    proxy.add("PATCH ", status=503, skip=2, times=1)
    content = Watched(data)
    assert put(remote(proxy.host), content) == len(data)
    assert [offset // MIB for offset in content.offsets] == [0, 2, 4, 4, 6, 8]
    assert len(proxy.requests("POST ")) == 1


def test_docker_registry_drops_what_broke_off_half_way(remote, proxy, data):
    """After a reset inside a chunk the session is gone and everything is sent again: this pins
    what the real registry does, so that we learn if it ever gets better."""
    proxy.add("PATCH ", drop_upload_after=MIB, skip=2, times=1)
    content = Watched(data)
    assert put(remote(proxy.host), content) == len(data)
    assert len(proxy.requests("POST ")) == 2
    assert content.offsets.count(0) == 2


def test_the_next_run_continues(remote, proxy, data):
    """What a run that gave up has sent is built upon by the next one, which shares its log."""
    log = MemoryUploadLog()
    rule = proxy.add("PATCH ", status=503, skip=3)
    with pytest.raises(Unavailable):
        remote(proxy.host, uploads=log).put_blob(Bytes(describe("t", data), data), QUIET)
    proxy.rules.remove(rule)
    content = Watched(data)
    assert put(remote(proxy.host, uploads=log), content) == 3 * MIB
    assert content.offsets[0] == 6 * MIB


KILLED = """
import sys
from pathlib import Path
from modelpack.oci import upload
from modelpack.oci.remote import RemoteRepository
from modelpack.oci.settings import ConnectSettings
from modelpack.spec.manifest import describe
from modelpack.spec.progress import QUIET
from modelpack.spec.source import Bytes
from modelpack.state.database import Database
from modelpack.state.uploads import DatabaseUploadLog

upload.CHUNK = 2 << 20
host, name, data, state = sys.argv[1:]
data = Path(data).read_bytes()
settings = ConnectSettings(uploads=DatabaseUploadLog(Database(Path(state))))
content = Bytes(describe("t", data), data)
RemoteRepository(host, name, settings).put_blob(content, QUIET)
"""


def test_kill_9_between_two_chunks(proxy, remote, name, data, tmp_path):
    """A process that is killed leaves enough behind for the next one to continue."""
    from modelpack.state.database import Database
    from modelpack.state.uploads import DatabaseUploadLog

    path, state = tmp_path / "data", tmp_path / "state.sqlite"
    path.write_bytes(data)
    # The registry holds the answer to a question that comes between two chunks: nothing is half sent.
    rule = proxy.add("PATCH ", status=429, headers={"Retry-After": "60"}, skip=2)
    running = subprocess.Popen([sys.executable, "-c", KILLED, proxy.host, name, path, state])
    try:
        wait_until(lambda: len(proxy.requests("PATCH ")) == 3)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    proxy.rules.remove(rule)
    database = Database(state)
    content = Watched(data)
    assert put(remote(proxy.host, uploads=DatabaseUploadLog(database)), content) == 5 * MIB
    database.close()
    assert content.offsets[0] == 4 * MIB


def test_a_lost_answer_is_not_a_lost_upload(remote, proxy, data):
    """If only the answer to the last request is lost, the blob is found and not sent again."""
    proxy.add("PUT .*/uploads/", reset_after=0, replace_headers={"Content-Length": "5"}, times=1)
    proxy.add("PUT .*/uploads/", status=503)
    assert put(remote(proxy.host), Bytes(describe("t", data), data)) == len(data)
    assert len(proxy.requests("POST ")) == 1


def test_wrong_bytes_are_sent_once(remote, registry, data):
    """Content that does not have its digest is not uploaded again and again."""
    content = Watched(data, told=data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IntegrityError):
        remote(registry.host).put_blob(content, QUIET)
    assert content.offsets.count(0) == 1


def test_a_session_with_wrong_bytes_is_given_up(remote, registry, proxy, data):
    """If what an earlier run has sent was wrong, everything is sent again, and then it is right."""
    log = MemoryUploadLog()
    rule = proxy.add("PATCH ", status=503, skip=2)
    wrong = Watched(data, told=bytes(4 * MIB) + data[4 * MIB :])
    with pytest.raises(Unavailable):
        remote(proxy.host, uploads=log).put_blob(wrong, QUIET)
    proxy.rules.remove(rule)
    content = Watched(data)
    repository = remote(proxy.host, uploads=log)
    put(repository, content)
    assert content.offsets[0] == 4 * MIB
    assert content.offsets.count(0) == 1


def test_a_session_in_use_is_left_alone(remote, proxy, data):
    """Two that upload one blob at once do not append to each other's session."""
    log = MemoryUploadLog()
    second = remote(proxy.host, uploads=log)

    class Racing(Watched):
        def read_from(self, offset):
            if offset == 4 * MIB and not proxy.requests("PUT "):
                put(second, Watched(data))
            yield from super().read_from(offset)

    assert put(remote(proxy.host, uploads=log), Racing(data)) == len(data)
    sessions = {one.path.partition("?")[0] for one in proxy.requests("PATCH ")}
    assert len(sessions) == 2
    assert len(proxy.requests("PATCH ")) == 10


def test_a_registry_without_chunks(remote, proxy, data):
    """Where chunks are refused, the blob is sent in one request."""
    proxy.add("PATCH ", status=405)
    assert put(remote(proxy.host), Bytes(describe("t", data), data)) == len(data)
    assert [one.received for one in proxy.requests("PUT ")] == [len(data)]


def test_a_registry_that_takes_one_chunk_only(remote, proxy, data):
    """A registry that loses its session at the second chunk, each time, gets everything at once."""

    def rule(seen, original=proxy._rule):
        found = original(seen)
        if seen.method == "PATCH" and not seen.headers["Content-Range"].startswith("0-"):
            found.status = 404
        return found

    proxy._rule = rule
    assert put(remote(proxy.host), Bytes(describe("t", data), data)) == len(data)
    assert len(proxy.requests("POST ")) == 3
    assert [one.received for one in proxy.requests("PUT ")] == [len(data)]


def test_a_registry_that_has_less_than_was_sent(remote, proxy, data):
    """An answer that reports another offset than ours makes a fresh start."""
    proxy.add("PATCH ", replace_headers={"Range": "0-1048575"}, skip=1, times=1)
    assert put(remote(proxy.host), Bytes(describe("t", data), data)) == len(data)
    assert len(proxy.requests("DELETE ")) == 1


def test_larger_chunks_if_the_registry_wants_them(remote, proxy, data):
    """OCI-Chunk-Min-Length is respected."""
    proxy.add("POST ", replace_headers={"OCI-Chunk-Min-Length": str(5 * MIB)})
    put(remote(proxy.host), Bytes(describe("t", data), data))
    assert [one.received for one in proxy.requests("PATCH ")] == [5 * MIB, 4 * MIB]


def test_an_answer_before_the_body_is_read(remote):
    """413 from a proxy that hangs up while we send is reported, and not a broken pipe."""
    data = bytes(64 * MIB)

    def answer(asked):
        if asked.method == "POST":
            return Say(202, {"Location": "/v2/x/blobs/uploads/1"})
        return Say(413, early=True)

    with scripted(answer) as server:
        monolith = remote(server.host)
        upload_size = upload.CHUNK
        upload.CHUNK = len(data)
        try:
            with pytest.raises(Rejected, match="413") as caught:
                monolith.put_blob(Bytes(describe("t", data), data), QUIET)
        finally:
            upload.CHUNK = upload_size
    assert "smaller shards" in caught.value.hint


@pytest.mark.parametrize("location", ["", "ftp://x/y", "http://", "http://[::1", "http://h:99999/"])
def test_a_useless_location(remote, location):
    """An upload session must have an address."""
    with scripted(lambda asked: Say(202, {"Location": location})) as server:
        with pytest.raises(ProtocolViolation):
            remote(server.host).put_blob(Bytes(describe("t", b"x"), b"x"), QUIET)


def test_uploads_may_go_elsewhere_without_credentials(remote):
    """An upload session on another host is used, and does not get our password."""
    from tests.oci.conftest import Known

    with scripted(lambda asked: Say(201)) as store:

        def answer(asked):
            if "Authorization" not in asked.headers:
                return Say(401, {"WWW-Authenticate": "Basic realm=r"})
            return Say(202, {"Location": f"{store.url}/upload?signature=1"})

        with scripted(answer) as server:
            repository = remote(server.host, credentials=Known("ann", "pw"))
            repository.put_blob(Bytes(describe("t", b"data"), b"data"), QUIET)
    (request,) = store.asked
    digest = describe("t", b"data").digest.replace(":", "%3A")
    assert request.path == f"/upload?signature=1&digest={digest}"
    assert request.body == b"data"
    assert "Authorization" not in request.headers


def test_no_step_back_from_tls(tls_registry, remote, data):
    """A registry behind TLS that names itself http:// is asked with TLS; another host is refused."""
    repository = remote(tls_registry.host, ca_file=tls_registry.extra["ca"])
    exchange = repository._exchange
    url = exchange.url("blobs/uploads/")
    same = f"http://{tls_registry.host}/v2/x"
    assert exchange.resolve(same, url) == f"https://{tls_registry.host}/v2/x"
    with pytest.raises(ProtocolViolation, match="from TLS"):
        exchange.resolve("http://other.example/x", url)


def test_mounts_that_fail_for_a_moment(remote, proxy, name):
    """An overloaded registry is asked to mount again, before the bytes travel after all."""
    content = Bytes(describe("t", name.encode()), name.encode())
    remote(proxy.host, f"{name}-a").put_blob(content, QUIET)
    proxy.add("POST .*mount=", status=503, times=2)
    assert remote(proxy.host).mount_blob(content.blob, f"{name}-a")


def test_a_mount_that_opens_an_upload(remote, proxy, name):
    """The upload that a registry opens when it cannot mount is cancelled."""
    assert not remote(proxy.host).mount_blob(describe("t", name.encode()), f"{name}-a")
    assert len(proxy.requests("DELETE .*/uploads/")) == 1
