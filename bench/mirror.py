"""Range serving by the mirror against nginx: the same layer, the same clients, sendfile both."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from bench import measure

CLIENTS = 16


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def nginx(root: Path, directory: Path):
    """An nginx that serves `root`; one worker per processor, as it is installed. Yields its host."""
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "nginx.conf"
    config.write_text(
        f"worker_processes auto; pid {directory}/pid; error_log {directory}/error.log;\n"
        "daemon off; user root; events { worker_connections 512; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; server {{ listen 127.0.0.1:{port};\n"
        f"  root {root}; default_type application/octet-stream; }} }}\n"
    )
    process = subprocess.Popen(["/usr/sbin/nginx", "-c", str(config), "-p", str(directory)])
    try:
        _answers(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> None:
    for _ in range(200):
        try:
            http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
        except OSError:
            time.sleep(0.05)
        else:
            return


def largest_layer(mirror: str, registry: str, name: str) -> tuple[str, int]:
    """The address of the largest layer at the mirror, and its size; takes the right to read it."""
    query = f"?ns={quote(registry, safe='')}"
    with urllib.request.urlopen(f"http://{mirror}/v2/{name}/manifests/v1{query}") as answer:
        manifest = json.load(answer)
    layer = max(manifest["layers"], key=lambda one: one["size"])
    return f"http://{mirror}/v2/{name}/blobs/{layer['digest']}{query}", layer["size"]


def download(url: str, target: Path) -> None:
    with urllib.request.urlopen(url) as answer, target.open("wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)


def ranges(url: str, size: int, rounds: int = 3) -> list[str]:
    """Sixteen curl at once, each with a sixteenth of the file, so many times; bytes go nowhere."""
    part = -(-size // CLIENTS)
    lines = []
    for number in range(CLIENTS):
        first, last = number * part, min(size, (number + 1) * part) - 1
        again = " ".join(f"-o /dev/null {url}" for _ in range(rounds))
        lines.append(f"curl -sSf -r {first}-{last} {again.replace('?', chr(92) + '?')} &")
    return ["sh", "-c", "\n".join([*lines, "wait"])]


def compare(host: str, name: str, mirror: str, data: Path, pairs: int) -> dict[str, object]:
    """Ratio of rates, mirror / nginx."""
    url, size = largest_layer(mirror, host, name)
    root = data / "nginx"
    (root / "www").mkdir(parents=True, exist_ok=True)
    copy = root / "www" / "layer"
    download(url, copy)
    os.sync()
    with nginx(root / "www", root / "run") as server:
        theirs = ranges(f"http://{server}/layer", size)
        ours = ranges(url, size)
        measure.run(ours), measure.run(theirs)
        found = measure.pairs(lambda: measure.run(ours), lambda: measure.run(theirs), pairs)
    shutil.rmtree(root)
    seconds = sorted(found["ours_seconds"])[len(found["ours_seconds"]) // 2]
    del found["ours_rss"]  # that of curl
    return {**found, "bytes": 3 * size, "gigabytes_per_second": round(3 * size / seconds / 1e9, 2)}
