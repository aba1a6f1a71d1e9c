"""What the daemon says: fields, request ids, and no secret."""

import base64
import json
import logging
import re

import pytest

from cache_daemon.observe import logs
from cache_daemon.observe.context import REQUEST, request_id
from modelpack.oci.credentials import Credential
from modelpack.spec.reference import Reference
from modelpack.verbs.node import Node
from modelpack.verbs.node_address import SocketAddress
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.process import trusted
from tests.cache_daemon.test_mirror import ANN, Client
from tests.support.faults import fault_proxy
from tests.support.processes import free_port, give_back, wait_until
from tests.support.tokens import PASSWORD, USER
from tests.support.weights import make_model


@pytest.fixture
def reference(registry, model, name, session):
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    return f"{registry.host}/{name}:v1"


def ask(one, method, path, body=None, **headers):
    """Return status, headers, body."""
    connection = SocketAddress(one.socket).connection()
    try:
        data = None if body is None else json.dumps(body)
        sent = {"Content-Type": "application/json", **headers}
        connection.request(method, path, data, sent)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_a_model_can_be_followed(daemon, registry, reference):
    """Begin, end, lease, removal: each line has reference, key and digest, and whose request."""
    one = daemon(f'--registries=["{registry.host}"]').start()
    wanted = {"ref": reference, "seconds": 60}
    assert ask(one, "PUT", "/v1/leases/a", wanted, **{"X-Request-Id": "pod-1"})[0] == 200
    assert ask(one, "DELETE", "/v1/leases/a", **{"X-Request-Id": "end-1"})[0] == 204
    [model] = Node(one.socket).get("/v1/models")
    assert ask(one, "DELETE", f"/v1/models/{model['key']}", **{"X-Request-Id": "rm-1"})[0] == 200
    one.stop()
    for message, request in {
        "fetch begins": "pod-1", "fetch ended": "pod-1", "leased": "pod-1", "released": "end-1",
        "removed": "rm-1",
    }.items():  # fmt: skip
        [line] = one.lines(message)
        assert (line["key"], line["reference"]) == (model["key"], model["reference"])
        assert line["reference"].endswith(line["digest"])
        assert line["request"] == request
    [ended] = one.lines("fetch ended")
    assert {k: ended[k] for k in ("bytes_fetched", "bytes_reused")} == {
        "bytes_fetched": model["bytes_fetched"], "bytes_reused": 0,
    }  # fmt: skip
    assert ended["seconds"] > 0


def test_requests_have_ids(daemon, registry):
    """The sender's, if it is sane; in the answer's header, in problems, and in the log."""
    one = daemon(f'--registries=["{registry.host}"]').start()
    _, headers, body = ask(one, "DELETE", "/v1/leases/nobody", **{"X-Request-Id": "mine_1-A"})
    assert headers["X-Request-Id"] == json.loads(body)["instance"] == "mine_1-A"
    for insane in ("x" * 65, "a b", 'a"b', "../x", ""):
        _, headers, _ = ask(one, "DELETE", "/v1/leases/nobody", **{"X-Request-Id": insane})
        assert re.fullmatch("[0-9a-f]{16}", headers["X-Request-Id"])
    assert "X-Request-Id" in ask(one, "GET", "/v1/stats")[1]
    one.stop()
    lines = one.lines("request")
    assert len(lines) == 6
    first = lines[0]
    assert {k: first[k] for k in ("method", "path", "status", "request", "door", "level")} == {
        "method": "DELETE", "path": "/v1/leases/nobody", "status": 404, "request": "mine_1-A",
        "door": "socket", "level": "INFO",
    }  # fmt: skip
    assert first["ms"] >= 0


def test_reads_are_for_those_who_ask(daemon):
    """At debug every request is logged, at warning none is."""
    loud = daemon("--log-level=debug", name="loud").start()
    ask(loud, "GET", "/v1/models")
    loud.stop()
    assert "/v1/models" in [line["path"] for line in loud.lines("request")]
    quiet = daemon("--log-level=warning", name="quiet").start()
    ask(quiet, "POST", "/v1/gc")
    quiet.stop()
    assert quiet.said() == ""


def test_text_for_people(daemon, registry, reference):
    """`--log-format=text`: one line each, name=value."""
    one = daemon(f'--registries=["{registry.host}"]', "--log-format=text").start()
    one.node("prefetch", reference, "--wait")
    one.stop()
    assert re.search(
        rf"^\d{{4}}-\S+Z INFO cache_daemon\.fetch: fetch ended reference={re.escape(reference)}@"
        r"sha256:[0-9a-f]{64} key=[0-9a-f]{40} digest=\S+ bytes_fetched=\d+ bytes_reused=0 "
        r"seconds=\S+ request=\w+$",
        one.said(), re.MULTILINE,
    )  # fmt: skip


def test_an_eviction_says_why(daemon, registry, reference, model, name, session, tmp_path):
    """Which model went, how much that freed, and because of what."""
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    second = f"{registry.host}/{name}:v2"
    push(
        str(make_model(tmp_path / "second", seed=7)),
        Reference.parse(second),
        session(),
        PushOptions(),
    )
    one = daemon(f'--registries=["{registry.host}"]', f"--most={size + 1000}",
                 "--prefetch-share=1").start()  # fmt: skip
    one.node("prefetch", reference, "--wait")
    one.node("prefetch", second, "--wait", "--pin")
    one.node("prefetch", reference, "--wait", code=5)
    counted = one.metrics()
    one.stop()
    [line] = one.lines("evicted")
    assert line["reference"].startswith(reference)
    assert line["reason"] == "space"
    assert line["bytes_freed"] > 0
    assert counted['modelpack_cache_evictions_total{reason="space"}'] == 1
    assert counted['modelpack_cache_refusals_total{reason="space"}'] == 1
    assert "bytes too few" in one.lines("fetch failed")[0]["error"]


def test_damage_and_revocation_are_said(daemon, registry, reference):
    """Which model is not shown any more, and how many grants are gone."""
    one = daemon(f'--registries=["{registry.host}"]', "--scrub-hours=0.0003").start()
    one.node("prefetch", reference, "--wait")
    assert ask(one, "POST", "/v1/revoke", {})[0] == 200
    files = (one.directory / "root" / "files").glob("*/*")
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    with largest.open("r+b") as file:
        file.write(b"rot")
    wait_until(lambda: one.lines("damaged files quarantined"))
    [aside] = one.lines("set aside: not shown any more")
    assert aside["reference"].startswith(reference)
    assert aside["level"] == "ERROR"
    assert one.metrics()["modelpack_cache_damaged_files_total"] == 1
    [line] = one.lines("damaged files quarantined")
    assert line["files"] == largest.name
    [line] = one.lines("grants revoked")
    assert (line["repository"], line["grants"]) == ("all", 1)


def test_no_secret_is_logged(daemon, token_registry, htpasswd_registry, model, name, session):
    """Private fetches, wrong passwords, the mirror with tokens, errors with URLs in them."""
    for registry in (token_registry, htpasswd_registry):
        credential = Credential(registry.username, registry.password)
        known = type(ANN)(credential.username, credential.password)
        push(str(model), Reference.parse(f"{registry.host}/{name}:v1"),
             session(credentials=known), PushOptions())  # fmt: skip
    token = token_registry.extra["tokens"].issue(
        {"service": ["registry.test"], "scope": [f"repository:{name}:pull"]},
        "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
    )[1]["token"]
    port = free_port()
    with fault_proxy(htpasswd_registry.host) as proxy:
        hosts = [token_registry.host, htpasswd_registry.host, proxy.host]
        one = daemon(
            trusted(token_registry),
            f"--registries={json.dumps(hosts)}", "--log-level=debug",
            f"--mirror=127.0.0.1:{port}", f"--mirror-for={json.dumps(hosts)}",
        ).start()  # fmt: skip
        secrets = [PASSWORD, htpasswd_registry.password, "wrong-secret", token, "hunter22"]
        for host, user, password in (
            (token_registry.host, USER, PASSWORD),
            (token_registry.host, USER, "wrong-secret"),
            (htpasswd_registry.host, htpasswd_registry.username, htpasswd_registry.password),
            (htpasswd_registry.host, USER, "wrong-secret"),
        ):
            body = {"ref": f"{host}/{name}:v1", "seconds": 60,
                    "credential": {"username": user, "password": password}}  # fmt: skip
            status = ask(one, "PUT", f"/v1/leases/{len(password)}", body)[0]
            assert (status == 200) == (password != "wrong-secret")
        client = Client(port, token_registry.host, name)
        for authorization in (f"Bearer {token}", "Bearer hunter22.hunter22", "Basic aHVudGVyMjI="):
            _, headers, _ = client.ask("manifests", "v1", Authorization=authorization)
            assert headers["X-Request-Id"]
        status, _, manifest = client.ask("manifests", "v1", Authorization=f"Bearer {token}")
        assert status == 200
        layer = json.loads(manifest)["layers"][0]["digest"]
        assert client.ask("blobs", layer, Authorization=f"Bearer {token}")[0] == 200
        body = {"ref": f"user:hunter22@{proxy.host}/{name}:v1", "seconds": 1}
        ask(one, "PUT", "/v1/leases/url?token=hunter22", body)
        ask(one, "GET", "/v1/models?password=hunter22")
    ask(one, "PUT", "/v1/leases/x", {"ref": f"{proxy.host}/{name}:v1", "seconds": 1, "credential":
                                     {"username": USER, "password": "hunter22"}})  # fmt: skip
    one.stop()
    give_back(port)
    said = one.said()
    assert len(one.lines("request")) > 10
    encoded = [base64.b64encode(f"{USER}:{one}".encode()).decode() for one in secrets]
    for secret in [*secrets, *encoded, "aHVudGVyMjI", token[:40]]:
        assert secret not in said


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("sent {'Authorization': 'Basic dXNlcjpwYXNz=='}", "sent {'Authorization': 'Basic ***'}"),
        ("https://ann:pw@host/x failed", "https://***@host/x failed"),
        ("GET https://b/x?X-Amz-Signature=ab12&X-Amz-Date=1",
         "GET https://b/x?X-Amz-Signature=***&X-Amz-Date=1"),
        ("'ann:pw@host/x': no reference", "'***@host/x': no reference"),
        ("h:5000/m:v1@sha256:00", "h:5000/m:v1@sha256:00"),
        ("https://h/t?a=1&token=xyz", "https://h/t?a=1&token=***"),
        ("a bearer of news, key=0123", "a bearer of news, key=0123"),
    ],
)  # fmt: skip
def test_the_last_net(said, instead):
    """What looks like a secret is not logged, whoever says it."""
    assert logs.redacted(said) == instead


@pytest.mark.timeout(20)
def test_long_lines_cost_little():
    """What others choose may be long: no pattern goes over it again and again."""
    for piece in ("a", "a:", "://", "?sig", "&token", "bearer ", "a:b/", "?" + "x" * 50):
        logs.redacted(piece * (200_000 // len(piece)))


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_line_is_a_line(format_, capsys):
    """Names of strangers forge no lines and move no cursor; tracebacks carry no secret."""
    before = logging.getLogger().handlers[:], logging.getLogger().level
    REQUEST.set("r1")
    try:
        logs.set_up(format_, "info")
        logging.getLogger("cache_daemon.x").info("a", extra={"path": "/x\n{}\x1b[2J", "empty": ""})
        try:
            int("https://a:b@c")
        except ValueError:
            logging.getLogger("cache_daemon.x").exception("failed")
        logging.getLogger("urllib3").info("chatter")
    finally:
        REQUEST.set("")
        logging.getLogger().handlers[:], level = before
        logging.getLogger().setLevel(level)
        logging.getLogger("cache_daemon").setLevel(logging.NOTSET)
    lines = capsys.readouterr().err.splitlines()
    assert "\x1b" not in "".join(lines)
    assert "a:b@" not in "".join(lines)
    assert "chatter" not in "".join(lines)
    assert "r1" in lines[0]
    if format_ == "json":
        assert len(lines) == 2
        assert json.loads(lines[0])["path"] == "/x\n{}\x1b[2J"
        assert "ValueError" in json.loads(lines[1])["exception"]


def test_ids_are_made_where_none_is_given():
    """Each one is new."""
    assert len({request_id("") for _ in range(100)}) == 100
    assert request_id("given") == "given"
