"""A daemon on a disk that is full, out of inodes, failing, or read-only: it says so and lives on."""

import contextlib
import json
import re
import subprocess
import threading
import urllib.request
from pathlib import Path

import pytest

from modelpack.spec.errors import DiskError
from modelpack.spec.media import OCI_MANIFEST
from modelpack.spec.reference import Reference
from modelpack.verbs.node import Node
from modelpack.verbs.push import PushOptions, push
from tests.support.mounts import crowded, filled, loop_mount, memory_mount, read_only
from tests.support.processes import wait_until
from tests.support.weights import make_model, tree

REST = 300_000  # bytes of manifests and indexes


@pytest.fixture
def references(proxy, registry, name, model, tmp_path, session):
    """Two models in a registry: a large one and a small one; each with what it holds."""
    small = make_model(tmp_path / "small", seed=7, megabytes=2)
    found = []
    for tag, directory in (("large", model), ("small", small)):
        push(
            str(directory), Reference.parse(f"{registry.host}/{name}:{tag}"), session(),
            PushOptions(),
        )  # fmt: skip
        found.append((f"{proxy.host}/{name}:{tag}", tree(directory)))
    return found


@pytest.fixture
def root(tmp_path):
    return tmp_path / "d" / "root"


def mounted(kind, tmp_path, root, tmpfs, make=""):
    """A small disk, and a store for a daemon right at the top of it."""
    if kind == "tmpfs":
        return memory_mount(tmp_path, tmpfs, at=root)
    return loop_mount(tmp_path, kind, megabytes=60, make=make, at=root)


@contextlib.contextmanager
def on_disk(daemon, proxy, references, disk):
    """A daemon on a disk, with the small model; yields it, the large one comes half-way.

    The fetch goes on when the gate is opened.
    """
    gate = threading.Event()
    (large, _), (small, _) = references
    with disk:
        one = daemon(f'--registries=["{proxy.host}"]').start()
        try:
            one.node("prefetch", small, "--wait")
            before = proxy.bytes_sent()
            proxy.add(f"GET .*/blobs/{largest_layer(large)}", gate=gate, times=1000)
            one.node("prefetch", large)
            wait_until(lambda: proxy.bytes_sent() > before + 4_000_000)
            yield one, gate
        finally:
            gate.set()
            code, said = one.stop()
        assert (code, "Traceback" in said) == (0, False), said


def largest_layer(reference):
    """Return the digest of one of the two shards."""
    host, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    request = urllib.request.Request(
        f"http://{host}/v2/{repository}/manifests/{tag}", headers={"Accept": OCI_MANIFEST}
    )
    with urllib.request.urlopen(request) as answer:
        return max(json.load(answer)["layers"], key=lambda layer: layer["size"])["digest"]


def failure(one, reference):
    """Wait for a fetch to have failed; returns its words, and the next step."""

    def fetch():
        models = Node(one.socket).get("/v1/models")
        return next(m["fetch"] for m in models if m["reference"].startswith(reference))

    wait_until(lambda: fetch() and fetch()["error"])
    return fetch()["error"], fetch()["hint"]


def healthy(one, reference, expected):
    """Whether what is cached is listed and can be read, and what the daemon says of itself."""
    assert reference in one.node("ls")
    assert "free" in one.node("status")
    assert Node(one.socket).get("/v1/live") == {"status": "live"}
    assert expected in [tree(path) for path in one.trees()]
    ready = one.answers()
    assert one.metrics()["modelpack_cache_ready"] == ready
    return ready


def arrives(one, reference, expected):
    one.node("prefetch", reference, "--wait")
    assert expected in [tree(path) for path in one.trees()]


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs"])
def test_another_program_fills_the_disk(kind, daemon, proxy, references, tmp_path, root):
    """The fetch says what and how much; with space again it goes on where it was."""
    (large, expected), (small, cached) = references
    disk = (
        loop_mount(tmp_path, "xfs", at=root)
        if kind == "xfs"
        else mounted(kind, tmp_path, root, "size=60m")
    )
    with on_disk(daemon, proxy, references, disk) as (one, gate):
        with filled(root):
            gate.set()
            words, hint = failure(one, large)
            assert re.search(r"No space left on device: \d+ bytes are free|too few", words)
            assert "free" in hint or "room" in hint
            assert not healthy(one, small, cached)
        assert one.answers()
        sent = proxy.bytes_sent()
        arrives(one, large, expected)
        assert proxy.bytes_sent() < sent + REST


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_another_program_takes_all_inodes(kind, daemon, proxy, references, tmp_path, root):
    """They are named as what is missing; the disk has space."""
    (large, expected), (small, cached) = references
    disk = mounted(kind, tmp_path, root, "size=60m,nr_inodes=600", "-N 600")
    with on_disk(daemon, proxy, references, disk) as (one, gate):
        with crowded(root):
            gate.set()
            words, hint = failure(one, large)
            assert re.search(r"No space left on device: all \d+ inodes are taken", words)
            assert "remove files" in hint
            assert not healthy(one, small, cached)
            one.node("rm", large)
            one.node("prefetch", large)
            words, hint = failure(one, large)
            assert re.search(r"\d+ inodes too few on the disk: 0 of \d+ are free", words)
        assert one.answers()
        sent = proxy.bytes_sent()
        arrives(one, large, expected)
        assert proxy.bytes_sent() < sent + REST


def test_what_the_disk_did_not_write_is_not_shown(daemon, proxy, references, tmp_path, root):
    """Write-back fails behind the daemon's back: fsync says it, and the file is fetched again."""
    (large, expected), (small, cached) = references
    with memory_mount(tmp_path, "size=40m") as memory:
        # The disk has 100 MB, but what holds it only 40. No journal: its loss would be another.
        image = memory / "disk"
        image.write_bytes(bytes(8 << 20))  # bitmaps and inodes have their place
        disk = loop_mount(
            tmp_path, "ext4", megabytes=100, image=image, at=root,
            make="-O ^has_journal -E nodiscard,lazy_itable_init=1 -N 1000",
        )  # fmt: skip
        with on_disk(daemon, proxy, references, disk) as (one, gate):
            with filled(memory):
                gate.set()
                words, hint = failure(one, large)
                # Like a thin pool: this disk has space, what it lies on has none. Either is said.
                assert re.search(r"error: /dev/loop|: \d{8} bytes are free of /dev/loop", words)
                assert "dmesg" in hint or "lies on, is full" in hint
                healthy(one, small, cached)
                assert len(one.trees()) == 1
            sent = proxy.bytes_sent()
            arrives(one, large, expected)
            assert proxy.bytes_sent() > sent + 1_000_000
            Path("/proc/sys/vm/drop_caches").write_text("1")
            assert expected in [tree(path) for path in one.trees()]


@pytest.mark.parametrize("kind", ["xfs", "ext4"])
def test_a_disk_that_dies(kind, daemon, proxy, references, tmp_path, root):
    """Everything fails: it is not ready and says why, and shows what it had; nothing is believed."""
    (large, _), (small, _) = references
    with loop_mount(tmp_path, "xfs", at=root if kind == "xfs" else None) as point:
        disk = contextlib.nullcontext()
        if kind == "ext4":
            image = point / "disk"
            disk = loop_mount(tmp_path, "ext4", megabytes=100, image=image, at=root)
        with on_disk(daemon, proxy, references, disk) as (one, gate):
            subprocess.run(["xfs_io", "-x", "-c", "shutdown -f", str(point)], check=True)
            gate.set()
            words, _ = failure(one, large)
            assert re.search(r"Input/output error|Read-only file system", words)
            for _ in range(2):
                with pytest.raises(DiskError, match=rf"(error|system): /dev/loop\d+ \({kind}\) on"):
                    Node(one.socket).get("/v1/ready")
            assert small in one.node("ls")
            assert "free" in one.node("status")
            assert Node(one.socket).get("/v1/live") == {"status": "live"}


def test_a_disk_that_is_read_only(daemon, proxy, references, tmp_path, root):
    """What needs no writing works, the rest says why not and what to do; then it is as before."""
    (large, expected), (small, cached) = references
    disk = mounted("ext4", tmp_path, root, "")
    with on_disk(daemon, proxy, references, disk) as (one, gate):
        node = Node(one.socket)
        here = next(model for model in node.get("/v1/models") if model["state"] == "ready")
        lease, pin = "/v1/leases/pod", f"/v1/models/{here['key']}/pin"
        node.send("PUT", "/v1/leases/before", {"ref": small})
        with read_only(root):
            gate.set()
            assert "Read-only file system" in failure(one, large)[0]
            assert not healthy(one, small, cached)
            assert node.send("POST", "/v1/models", {"ref": small})["state"] == "ready"
            assert node.send("PUT", "/v1/leases/before", {"ref": small})["key"] == here["key"]
            for method, path, body in (
                ("PUT", lease, {"ref": small}), ("PUT", pin, {}), ("GET", "/v1/ready", None),
                ("DELETE", "/v1/leases/before", None),
            ):  # fmt: skip
                with pytest.raises(DiskError, match=r"Read-only file system: /dev/loop") as caught:
                    node.send(method, path, body)
                assert "remount" in caught.value.hint
            assert [one["id"] for one in node.get("/v1/leases")] == ["before"]
        assert one.answers()
        node.send("DELETE", "/v1/leases/before")
        node.send("PUT", lease, {"ref": small})
        node.send("PUT", pin, {})
        node.send("DELETE", pin)
        node.send("DELETE", lease)
        with read_only(root):
            with pytest.raises(DiskError, match="Read-only file system"):
                node.send("DELETE", f"/v1/models/{here['key']}")
            assert not healthy(one, small, cached)
        assert "freed" in one.node("rm", small)
        arrives(one, large, expected)
