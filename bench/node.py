"""The cache daemon against `modelpack pull`, and how long a lease on a cached model takes."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from bench import measure
from modelpack.spec.errors import Unavailable
from modelpack.verbs.node import Node


@contextmanager
def daemon(root: Path, host: str):
    """A daemon on its own socket; yields (socket, process)."""
    socket = root.with_suffix(".sock")
    process = subprocess.Popen(
        [sys.executable, "-m", "cache_daemon.main", f"--root={root}", f"--socket={socket}",
         f'--registries=["{host}"]', "--keep-free=0"], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while process.poll() is None:
            try:
                Node(socket).get("/v1/ready")
                break
            except Unavailable:
                time.sleep(0.05)
        yield socket, process
    finally:
        process.terminate()
        process.wait()


def cold_fetch(modelpack: str, reference: str, socket: Path):
    """Fetch through the daemon into an empty cache; returns the function to time."""
    node = Node(socket)

    def run() -> measure.Run:
        for model in node.get("/v1/models"):
            if model["state"] == "ready":
                node.send("DELETE", f"/v1/models/{model['key']}")
        subprocess.run(["sync"], check=True)
        return measure.run(
            [modelpack, "node", "prefetch", reference, "--wait", f"--socket={socket}"]
        )

    return run


def disk_of_versions(data: Path, references: list[str], host: str) -> dict[str, int] | str:
    """Bytes that each version takes on an xfs of its own, fetched in this order."""
    if os.geteuid() or not shutil.which("mkfs.xfs"):
        return "needs root and xfsprogs"
    image, point = data / "xfs.img", data / "xfs"
    point.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(40 << 30)
    subprocess.run(["mkfs.xfs", "-q", "-f", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    found = {}
    try:
        with daemon(point / "root", host) as (socket, _):
            client = Node(socket)
            for reference in references:
                before = _free(point)
                key = client.send("POST", "/v1/models", {"ref": reference})["key"]
                *_, model = client.watch(key)
                assert model["state"] == "ready", model
                found[reference.rpartition(":")[2]] = before - _free(point)
    finally:
        subprocess.run(["umount", str(point)], check=True)
        image.unlink()
    return found


def _free(point: Path) -> int:
    os.sync()
    status = os.statvfs(point)
    return status.f_bavail * status.f_frsize


def leases(reference: str, socket: Path, count: int = 200) -> dict[str, dict[str, float]]:
    """Milliseconds of ensure and lease on a cached model, by digest, at 1 and 4 callers at once."""
    found = {}
    for callers in (1, 4):
        took: list[float] = []

        def call(caller: int, callers: int = callers, took: list[float] = took) -> None:
            node = Node(socket)
            for number in range(count // callers):
                lease = f"/v1/leases/bench-{callers}-{caller}-{number}"
                started = time.perf_counter()
                node.send("PUT", lease, {"ref": reference, "seconds": 5})
                took.append(1000 * (time.perf_counter() - started))
                node.send("DELETE", lease)

        threads = [threading.Thread(target=call, args=(n,)) for n in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took.sort()
        found[f"{callers} at once"] = {
            "p50": round(took[len(took) // 2], 2), "p99": round(took[len(took) * 99 // 100], 2),
        }  # fmt: skip
    return found


def resident(process: subprocess.Popen) -> int:
    """The most bytes that the daemon had in memory."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def by_digest(modelpack: str, reference: str, socket: Path) -> str:
    """The reference of a model on the node, without its tag."""
    done = subprocess.run(
        [modelpack, "node", "prefetch", reference, "--wait", "--json", f"--socket={socket}"],
        check=True, capture_output=True,
    )  # fmt: skip
    full = json.loads(done.stdout)["reference"]
    name, _, digest = full.partition("@")
    return f"{name.rpartition(':')[0]}@{digest}"
