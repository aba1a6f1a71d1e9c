"""The daemon is killed at random instants, while many ask and the registry stumbles."""

import os
import random
import signal
import sqlite3
import subprocess
import threading
from dataclasses import dataclass, field

import pytest

from cache_daemon.fetch.request import resolve
from modelpack.oci.connect import open_repository
from modelpack.spec.errors import ModelpackError
from modelpack.spec.reference import Reference
from modelpack.transfer.plan import GAP
from modelpack.verbs.node import Node
from modelpack.verbs.push import PushOptions, push
from tests.conftest import fast
from tests.support.faults import fault_proxy
from tests.support.weights import make_model, tree

CYCLES = int(os.environ.get("MODELPACK_KILLS", "500"))
CALLERS = 3
FAULTS = (
    {"flip": 70_000}, {"reset_after": 300_000}, {"status": 503}, {"status": 500},
    {"slice_pause": (30_000, 0.05)}, {"stall_after": 200_000},
)  # fmt: skip


@dataclass
class Leases:
    """What callers were told. A call that the kill interrupted may or may not have counted."""

    held: dict[str, str] = field(default_factory=dict)
    maybe: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, found):
        """Compare with what the daemon says after a restart."""
        for name, key in self.held.items():
            assert found.get(name) == key, f"lease {name} was lost"
        for name in found:
            assert name in self.held or name in self.maybe, f"lease {name} came back"
        self.held, self.maybe = dict(found), {}


class Caller(threading.Thread):
    """Asks for models, holds them, lets go, removes, collects, until the daemon is dead."""

    def __init__(self, number, socket, references, leases, generator) -> None:
        super().__init__()
        self.number, self.node, self.references = number, Node(socket), references
        self.leases, self.random = leases, random.Random(generator.random())
        self.wrong = []
        self.removed = False

    def run(self) -> None:
        turn = 0
        while True:
            turn += 1
            act = self.random.choice([self.ensure] * 3 + [self.lease] * 3 + [self.release] * 2
                                     + [self.remove, self.collect, self.look])  # fmt: skip
            try:
                act(turn)
            except ModelpackError as error:
                if "does not answer" in str(error):
                    return
            except Exception as error:  # noqa: BLE001  # the test must hear of it
                self.wrong.append(error)
                return

    def ensure(self, _turn) -> None:
        self.node.send("POST", "/v1/models", {"ref": self.random.choice(self.references)})

    def lease(self, turn) -> None:
        name = f"pod-{self.number}-{os.urandom(4).hex()}-{turn}"
        with self.leases.lock:
            self.leases.maybe[name] = ""
        wanted = {"ref": self.random.choice(self.references), "seconds": 0.3}
        lease = self.node.send("PUT", f"/v1/leases/{name}", wanted)
        with self.leases.lock:
            if "owner" in lease:
                self.leases.held[name] = lease["key"]

    def release(self, _turn) -> None:
        with self.leases.lock:
            mine = [name for name in self.leases.held if name.startswith(f"pod-{self.number}-")]
            if not mine:
                return
            name = self.random.choice(mine)
            self.leases.maybe[name] = self.leases.held.pop(name)
        self.node.send("DELETE", f"/v1/leases/{name}")
        with self.leases.lock:
            del self.leases.maybe[name]

    def remove(self, _turn) -> None:
        for model in self.node.get("/v1/models"):
            if self.random.random() < 0.3:
                self.removed = True
                self.node.send("DELETE", f"/v1/models/{model['key']}")

    def collect(self, _turn) -> None:
        self.node.send("POST", "/v1/gc")

    def look(self, _turn) -> None:
        self.node.get("/v1/stats")


def spans(reference):
    """Where the files of an artifact lie: id -> (layer's digest, first byte, last byte)."""
    wanted = resolve(Reference.parse(reference), lambda one: open_repository(one, fast()), (), ())
    index = wanted.artifact.index
    found = {}
    for number in wanted.files:
        file = index.files[number]
        layer = wanted.artifact.layers[file.layer].digest
        if file.size > GAP:  # smaller ones may come along with their neighbours
            found[wanted.id_of(number)] = (layer, file.offset, file.offset + file.size - 1)
    return found


def complete_files(root):
    """The files that the last daemon had when it died, in snapshots or staged: not what it removed."""
    trees = [path for path in (root / "snapshots").glob("*/tree") if path.parent.name[0] != "."]
    linked = {
        path.stat().st_ino
        for tree in [*trees, root / "partial"]
        for path in tree.rglob("*")
        if path.is_file()
    }
    return {path.name for path in (root / "files").glob("*/*") if path.stat().st_ino in linked}


def fetched_again(requests, complete, where):
    """Whether bytes of a file that was complete were asked for."""
    for request in requests:
        digest = request.path.rpartition("/")[2].partition("?")[0]
        range_ = request.headers.get("Range", "")
        if not range_.startswith("bytes="):
            continue
        first, last = map(int, range_[6:].split("-"))
        for id_ in complete:
            for layer, start, end in where.get(id_, ()):
                if layer == digest and first <= end and start <= last:
                    return f"{id_}: {range_} of {digest}"
    return ""


def torture(daemon, proxy, references, expected, cycles):
    """Kill, start, look, again and again; then all models must come, and nothing be left over."""
    generator = random.Random(cycles)
    where = {}
    for reference in references:
        for id_, span in spans(reference).items():
            where.setdefault(id_, []).append(span)
    one = daemon(f'--registries=["{proxy.host}"]', "--slots=2")
    leases = Leases()
    for _ in range(cycles):
        complete, began = complete_files(one.directory / "root"), len(proxy.seen)
        proxy.rules.clear()
        for fault in generator.sample(FAULTS, 2):
            proxy.add("GET .*/blobs/", skip=generator.randrange(6), times=1, **fault)
        one.start()
        leases.check({one["id"]: one["key"] for one in Node(one.socket).get("/v1/leases")})
        for path in one.trees():
            assert tree(path) in expected, "a wrong byte is visible"
        callers = [
            Caller(number, one.socket, references, leases, generator) for number in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        try:
            one.process.wait(generator.uniform(0.01, 0.6))
        except subprocess.TimeoutExpired:
            pass
        assert one.process.poll() is None, one.stop()
        one.stop(signal.SIGKILL)
        for caller in callers:
            caller.join()
            assert not caller.wrong
        if not any(caller.removed for caller in callers):
            assert not fetched_again(proxy.seen[began:], complete, where)
    proxy.rules.clear()
    finish(one, references, expected, leases)


def finish(one, references, expected, leases):
    """The registry is well again: everything comes, and the disk holds that and nothing else."""
    one.start()
    leases.check({lease["id"]: lease["key"] for lease in Node(one.socket).get("/v1/leases")})
    for reference in references:
        assert "ready" in one.node("prefetch", reference, "--wait", "--json")
    trees = [tree(path) for path in one.trees()]
    assert sorted(map(str, trees)) == sorted(map(str, expected))
    one.node("gc")
    root = one.directory / "root"
    linked = {path.stat().st_ino for t in one.trees() for path in t.rglob("*") if path.is_file()}
    assert {path.stat().st_ino for path in (root / "files").glob("*/*")} == linked
    assert not list((root / "partial").iterdir())
    assert not list((root / "wants").iterdir())
    assert one.stop()[0] == 0
    ledger = sqlite3.connect(root / "ledger.sqlite")
    keys = {key for (key,) in ledger.execute("SELECT key FROM usage WHERE uses > 0")}
    ledger.close()
    assert keys == {path.name for path in (root / "snapshots").iterdir()}


@pytest.fixture
def versions(registry, name, session, tmp_path):
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


def test_killed_a_few_times(daemon, registry, versions):
    """No wrong byte, no lost lease, nothing complete fetched again, nothing left over."""
    names, expected = versions
    with fault_proxy(registry.host) as proxy:
        torture(daemon, proxy, [f"{proxy.host}/{one}" for one in names], expected, 6)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_many_times(daemon, registry, versions):
    """The same for a long time."""
    names, expected = versions
    with fault_proxy(registry.host) as proxy:
        torture(daemon, proxy, [f"{proxy.host}/{one}" for one in names], expected, CYCLES)
