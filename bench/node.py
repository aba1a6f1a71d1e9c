"""The cache daemon against `modelpack pull`, and how long a lease on a cached model takes."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from bench import measure
from bench.scale import terabyte_index
from cache_daemon.api.values import Snapshot, StoredFile, snapshot_key
from cache_daemon.space.room import Limits
from cache_daemon.store.files import file_id
from cache_daemon.store.snapshots import Papers
from cache_daemon.store.store import Store
from modelpack.spec.errors import Unavailable
from modelpack.verbs.node import Node


@contextmanager
def daemon(root: Path, host: str, *options: str, group: str = ""):
    """A daemon on its own socket, perhaps in a memory control group; yields (socket, process)."""
    socket = root.with_suffix(".sock")
    line = [
        sys.executable, "-m", "cache_daemon.main", f"--root={root}", f"--socket={socket}",
        f'--registries=["{host}"]', "--keep-free=0", *options,
    ]  # fmt: skip
    if group:
        line = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *line]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL)
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


def leases_at_a_rate(reference: str, socket: Path, rate: int = 200, seconds: int = 10) -> dict:
    """Milliseconds of a lease on a cached model at so many per second, whatever the answers take.

    Counted from when the request was due, so that a server that falls behind shows.
    """
    took: list[float] = []
    total = rate * seconds
    due = iter(range(total))
    lock = threading.Lock()
    begin = time.perf_counter() + 0.2

    def work() -> None:
        node = Node(socket)
        while True:
            with lock:
                number = next(due, None)
            if number is None:
                return
            when = begin + number / rate
            time.sleep(max(0.0, when - time.perf_counter()))
            lease = f"/v1/leases/rate-{number}"
            node.send("PUT", lease, {"ref": reference, "seconds": 5})
            took.append(1000 * (time.perf_counter() - when))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    node = Node(socket)
    for number in range(total):
        node.send("DELETE", f"/v1/leases/rate-{number}")
    took.sort()
    return {
        "per_second": rate, "p50": round(took[total // 2], 2), "p99": round(took[total * 99 // 100], 2),
        "longest": round(took[-1], 2),
    }  # fmt: skip


def idle(process: subprocess.Popen, seconds: float = 20.0) -> float:
    """Share of a processor that the daemon takes when nobody asks for anything."""

    def ticks() -> int:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(seconds)
    return round((ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds, 4)


def start_with_a_terabyte(data: Path) -> dict[str, object]:
    """Seconds from exec to the first answer, with one model of 1 TB in 250,000 chunks."""
    root = data / "terabyte"
    shutil.rmtree(root, ignore_errors=True)
    store = Store(root, Limits(keep_free=0.0, inodes_free=0.0))
    index = terabyte_index()
    staging = store.partial("bench")
    staging.mkdir(parents=True)
    files, staged = [], {}
    for file in index.files:
        lengths = index.lengths[file.first : file.first + file.chunks]
        id_ = file_id(index.header.algorithm, file.size, lengths, index.digests(file))
        staged[id_] = staging / id_
        staged[id_].touch()
        os.truncate(staged[id_], file.size)  # sparse
        files.append(StoredFile(file.path, id_, file.size))
    snapshot = Snapshot(
        key=snapshot_key("bench", [file.path for file in files]), reference="r.example/b/m@sha256:0",
        repository="r.example/b/m", digest="sha256:0", domain="r.example/b", files=tuple(files),
        bytes_total=10**12, bytes_fetched=0, bytes_reused=0, fetch_seconds=1.0, created=1.0,
    )  # fmt: skip
    store.begin(snapshot.key, snapshot.ids)
    store.publish(snapshot, staged, Papers(index=index.encode()))
    store.close()
    times = []
    for _ in range(9):
        started = time.perf_counter()
        with daemon(root, "r.example", "--scrub-bytes-per-second=0"):
            times.append(time.perf_counter() - started)
    shutil.rmtree(root)
    return {"chunks": len(index), "seconds": round(statistics.median(times), 3)}


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
