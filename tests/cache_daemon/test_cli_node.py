"""`modelpack node`: top, pause, warm, and prefetches of private models."""

import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from modelpack.oci.credentials import Credential, DockerCredentials
from modelpack.spec.reference import Reference
from modelpack.verbs.node import Node, credential_for
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.process import trusted
from tests.oci.conftest import Known
from tests.support.processes import wait_until


def on_a_terminal(one, *arguments):
    """Run `modelpack node` on a terminal; returns the process and what it is read from."""
    mine, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "modelpack.cli.entry", "node", *arguments,
         f"--socket={one.socket}"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)
    return running, mine


def read_until(terminal, words):
    """Read from a terminal until it has shown this."""
    said = ""
    while words not in said:
        said += os.read(terminal, 10_000).decode()
    return said


def test_top_is_live_and_ends_with_control_c(daemon, proxy, name, model, session):
    """A fetch under way has a rate and what is left; Ctrl-C is how it ends: exit code 0."""
    push(str(model), Reference.parse(f"{proxy.host}/{name}:v1"), session(), PushOptions())
    one = daemon(f'--registries=["{proxy.host}"]').start()
    proxy.add("GET .*/blobs/", slice_pause=(50_000, 0.2))
    Node(one.socket).send("POST", "/v1/models", {"ref": f"{proxy.host}/{name}:v1"})
    running, terminal = on_a_terminal(one, "top")
    try:
        said = read_until(terminal, " left")
        assert "1 fetching" in said
        assert "B/s" in said
        running.send_signal(signal.SIGINT)
        rest = b""
        try:
            while data := os.read(terminal, 10_000):
                rest += data
        except OSError:
            pass  # the other end is closed
        assert running.wait(30) == 0
        assert "interrupted" not in rest.decode()
        assert "Traceback" not in rest.decode()
    finally:
        running.kill()
        running.wait()
        os.close(terminal)


def test_top_without_a_terminal_is_one_look(daemon):
    """For pipes and scripts it ends by itself."""
    one = daemon().start()
    assert "0 models, 0 leases, 0 pins" in one.node("top")
    found = json.loads(one.node("top", "--json"))
    assert found["fetches"] == []
    assert found["mirror_bytes"] == {"disk": 0, "arriving": 0, "registry": 0}


def test_pause_and_undo(daemon, registry, model, name, session):
    """While paused nothing begins; afterwards it comes."""
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    one = daemon(f'--registries=["{registry.host}"]').start()
    assert "paused" in one.node("pause")
    assert "paused" in one.node("status")
    assert "queued" in one.node("prefetch", f"{registry.host}/{name}:v1")
    assert "1 queued, paused" in one.node("top")
    assert "fetching" in one.node("pause", "--undo")
    node = Node(one.socket)
    wait_until(lambda: [m["state"] for m in node.get("/v1/models")] == ["ready"])


def test_warm(daemon, registry, model, name, session):
    """The whole model is in the page cache, and it says so."""
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    one = daemon(f'--registries=["{registry.host}"]', "--warm-keep-free=0").start()
    one.node("prefetch", f"{registry.host}/{name}:v1", "--wait")
    found = json.loads(one.node("warm", f"{registry.host}/{name}:v1", "--wait=60", "--json"))
    assert found["done"]
    assert found["bytes_resident"] >= found["bytes_total"] > 0
    assert "in memory" in one.node("warm", f"{registry.host}/{name}:v1", "--wait=60")
    assert "no such model" in one.node("warm", "nothing/here:v1", code=3)


@pytest.mark.parametrize("kind", ["htpasswd_registry", "token_registry"])
def test_prefetch_of_a_private_model(daemon, request, kind, model, name, session):
    """With the user's credential, as pull has it; without it, or with --anonymous, refused."""
    registry = request.getfixturevalue(kind)
    known = Known(registry.username, registry.password)
    reference = f"{registry.host}/{name}:v1"
    push(str(model), Reference.parse(reference), session(credentials=known), PushOptions())
    one = daemon(f'--registries=["{registry.host}"]', trusted(registry)).start()
    assert "next:" in one.node("prefetch", reference, code=4)
    DockerCredentials().store(registry.host, Credential(registry.username, registry.password))
    assert "next:" in one.node("prefetch", reference, "--anonymous", code=4)
    assert reference in one.node("prefetch", reference, "--wait")
    assert registry.password not in one.said()


def test_what_is_sent(tmp_path, monkeypatch):
    """Only what the config has for that registry; nothing for layouts."""
    DockerCredentials().store("registry.example.com", Credential("ann", "pw"))
    DockerCredentials().store("other.example.com", Credential(identity_token="idt"))
    assert credential_for("registry.example.com/a:v1") == {"username": "ann", "password": "pw"}
    assert credential_for("other.example.com/a:v1") == {"identity_token": "idt"}
    assert credential_for("third.example.com/a:v1") is None
    assert credential_for(f"oci:{tmp_path}:v1") is None
