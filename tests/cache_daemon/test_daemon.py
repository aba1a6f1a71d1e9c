"""The daemon as a process, and `modelpack node` before it."""

import json
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from modelpack.spec.reference import Reference
from modelpack.verbs.push import PushOptions, push
from tests.cache_daemon.process import Daemon
from tests.support.processes import free_port, give_back
from tests.support.weights import tree


@pytest.fixture
def reference(registry, model, name, session):
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    return f"{registry.host}/{name}:v1"


def test_an_operators_day(daemon, registry, reference, model):
    """prefetch, ls, explain, pin, rm, unpin, gc, drain: each says what it did."""
    one = daemon(f'--registries=["{registry.host}"]').start()
    assert "no models" in one.node("ls")
    assert reference in one.node("prefetch", reference, "--wait")
    found = json.loads(one.node("ls", "--json"))["models"][0]
    assert tree(Path(found["path"])) == tree(model)
    explained = one.node("explain", reference)
    assert "from the registry" in explained
    for phase in ("resolving", "waiting", "fetching", "writing to disk"):
        assert phase in explained
    one.node("pin", found["key"][:8], "--hours", "1")
    assert "held by a pin" in one.node("rm", reference, code=9)
    assert "pinned" in one.node("ls")
    one.node("unpin", reference)
    assert "freed" in one.node("rm", reference)
    assert "no such model" in one.node("rm", reference, code=3)
    assert "0 B freed" in one.node("gc")
    one.node("drain")
    assert "drained" in one.node("prefetch", reference, code=5)
    one.node("drain", "--undo")
    assert "0 models" in one.node("status")
    assert "not an allowed registry" in one.node("prefetch", "example.com/a:v1", code=4)
    assert "not a repository name" in one.node("prefetch", "NOT A REF", code=2)
    code, said = one.stop()
    assert code == 0
    assert "Traceback" not in said
    assert not one.socket.exists()


def test_the_socket_is_for_few(daemon):
    """Owner and group may use it; there is no moment in which others may."""
    one = daemon().start()
    assert stat.S_IMODE(one.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE((one.directory / "root").stat().st_mode) == 0o700


def test_the_cluster_needs_the_token(daemon, tmp_path):
    """Over TCP only liveness is for everybody."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    port = free_port()
    daemon(f"--listen=127.0.0.1:{port}", f"--token-file={token}").start()

    def status(path, given=None):
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert status("/v1/live") == 200
    assert status("/v1/models") == status("/metrics") == 401
    assert status("/v1/models", "0123456789abcdeX") == 401
    assert status("/v1/models", "0123456789abcdef") == 200
    give_back(port)


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (["--listen=:1", "--token-file=/dev/null"], "expected HOST:PORT", 2),
        (["--listen=127.0.0.1:1", "--token-file=/dev/null"], "at least 16", 1),
        (["--listen=127.0.0.1:1"], "token", 2),
        (["--slots=0"], "slots", 2),
        (["--listen=0.0.0.0:1", "--token-file=/dev/null"], "insecure_listen", 2),
        (['--trusted-hosts=["https://x"]'], "expected HOST[:PORT]", 1),
        (["--root=/proc"], "expected one of ext4", 1),
    ],
)
def test_settings_that_make_no_sense(options, said, code, tmp_path):
    """One line says which, and what was expected."""
    done = subprocess.run(
        [sys.executable, "-m", "cache_daemon.main", f"--root={tmp_path / 'r'}",
         f"--socket={tmp_path / 's'}", *options],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_come_from_the_environment(tmp_path):
    """Flags count more than the environment; --print-config shows what counts."""
    done = subprocess.run(
        [sys.executable, "-m", "cache_daemon.main", "--print-config", "--slots=3"],
        env={**os.environ, "MODELPACK_CACHE_SLOTS": "7", "MODELPACK_CACHE_JOBS": "9"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["slots"], found["jobs"]) == (3, 9)


def test_two_daemons(daemon):
    """The second is told who has the directory; the first goes on."""
    one = daemon().start()
    second = Daemon(one.directory, "--slots=1")
    second.socket = one.directory / "second.sock"
    with pytest.raises(AssertionError, match="another daemon is using it"):
        second.start()
    assert one.answers()
