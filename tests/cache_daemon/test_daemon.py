"""The daemon as a process, and `modelpack node` before it."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from modelpack.spec.reference import Reference
from modelpack.verbs.node import Node
from modelpack.verbs.push import PushOptions, push
from tests.support.faults import fault_proxy
from tests.support.processes import free_port, give_back, wait_until
from tests.support.weights import make_model, tree

CYCLES = int(os.environ.get("MODELPACK_KILLS", "50"))


class Daemon:
    """A daemon on a directory; started, killed, started again."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket = directory / "cache.sock"
        self.options = options
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cache_daemon.main", f"--root={self.directory / 'root'}",
             f"--socket={self.socket}", "--keep-free=0", "--grace-seconds=5", *self.options],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_until(lambda: self.process.poll() is not None or self.answers())
        if self.process.poll() is not None:
            raise AssertionError(self.process.communicate()[1].decode())
        return self

    def answers(self):
        try:
            return Node(self.socket).get("/v1/ready")["status"] == "ready"
        except Exception:  # noqa: BLE001  # not yet
            return False

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said.decode()

    def node(self, *arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "modelpack.cli.entry", "node", *arguments,
             f"--socket={self.socket}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr

    def trees(self):
        return [path / "tree" for path in (self.directory / "root" / "snapshots").iterdir()]


@pytest.fixture
def daemon(tmp_path):
    daemons = []

    def make(*options, name="d"):
        (tmp_path / name).mkdir(exist_ok=True)
        daemons.append(Daemon(tmp_path / name, *options))
        return daemons[-1]

    yield make
    for one in daemons:
        if one.process is not None and one.process.poll() is None:
            one.stop(signal.SIGKILL)


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
    assert "from the registry" in one.node("explain", reference)
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


def torture(daemon, host, references, expected, cycles):
    """Kill the daemon at random instants while models come and go."""
    generator = random.Random(1)
    one = daemon(f'--registries=["{host}"]', "--slots=2")
    leases = {}
    for cycle in range(cycles):
        one.start()
        node = Node(one.socket)
        held = {lease["id"]: lease["key"] for lease in node.get("/v1/leases")}
        assert held == leases, "a lease was lost"
        for path in one.trees():
            assert tree(path) in expected, "a wrong byte is visible"
        try:
            for reference in generator.sample(references, 2):
                node.send("POST", "/v1/models", {"ref": reference})
            if cycle % 3 == 0:
                wanted = {"ref": generator.choice(references), "seconds": 20}
                lease = node.send("PUT", f"/v1/leases/pod-{cycle}", wanted)
                leases[f"pod-{cycle}"] = lease["key"]
            if cycle % 5 == 4 and leases:
                gone = generator.choice(sorted(leases))
                node.send("DELETE", f"/v1/leases/{gone}")
                del leases[gone]
            if cycle % 4 == 3:
                for model in node.get("/v1/models"):
                    if not model["leases"]:
                        node.send("DELETE", f"/v1/models/{model['key']}")
        finally:
            try:
                one.process.wait(generator.uniform(0, 0.3))
            except subprocess.TimeoutExpired:
                one.stop(signal.SIGKILL)
    one.start()
    for reference in references:
        assert "ready" in one.node("prefetch", reference, "--wait", "--json")
    trees = [tree(path) for path in one.trees()]
    assert sorted(map(str, trees)) == sorted(map(str, expected))
    one.node("gc")
    ids = {path.name for path in (one.directory / "root" / "files").glob("*/*")}
    linked = {
        str(path.stat().st_ino) for t in one.trees() for path in t.rglob("*") if path.is_file()
    }
    stored = {str(path.stat().st_ino) for path in (one.directory / "root" / "files").glob("*/*")}
    assert stored == linked
    assert len(ids) == len(stored)
    assert one.stop()[0] == 0


def prepare(registry, name, session, tmp_path):
    """Three versions with most bytes in common; returns the names and what they hold."""
    models = [make_model(tmp_path / f"m{n}", seed=1, megabytes=6) for n in range(3)]
    for number, directory in enumerate(models):
        shard = directory / "model-00001-of-00002.safetensors"
        data = bytearray(shard.read_bytes())
        data[-1 - number] ^= 1
        shard.write_bytes(data)
        reference = Reference.parse(f"{registry.host}/{name}:v{number}")
        push(str(directory), reference, session(), PushOptions())
    return [f"{name}:v{n}" for n in range(3)], [tree(directory) for directory in models]


def test_killed_a_few_times(daemon, registry, name, session, tmp_path):
    """No wrong byte, no lost lease, nothing left over; with a registry that stumbles."""
    names, expected = prepare(registry, name, session, tmp_path)
    with fault_proxy(registry.host) as proxy:
        proxy.add("GET .*/blobs/", slice_pause=(400_000, 0.01))
        torture(daemon, proxy.host, [f"{proxy.host}/{one}" for one in names], expected, 5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_many_times(daemon, registry, name, session, tmp_path):
    """The same for a long time, with resets, stalls, wrong bytes and errors on the way."""
    names, expected = prepare(registry, name, session, tmp_path)
    with fault_proxy(registry.host) as proxy:
        for number in range(40):
            proxy.add("GET .*/blobs/", skip=7 * number, times=1, flip=70_000 if number % 4 == 0
                      else -1, reset_after=300_000 if number % 4 == 1 else -1,
                      status=503 if number % 4 == 2 else 0)  # fmt: skip
        proxy.add("GET .*/blobs/", slice_pause=(400_000, 0.01))
        torture(daemon, proxy.host, [f"{proxy.host}/{one}" for one in names], expected, CYCLES)
