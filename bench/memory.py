"""A memory control group of its own, version 1 or 2, for as long as a block runs."""

from contextlib import contextmanager
from pathlib import Path

from modelpack.verbs.node import Node

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def group(limit: int):
    """Make one with a limit in bytes; yields its directory."""
    first = (ROOT / "memory").exists()
    directory = (ROOT / "memory" if first else ROOT) / "modelpack-bench"
    directory.mkdir(exist_ok=True)
    (directory / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    try:
        yield directory
    finally:
        directory.rmdir()


def oom_kills(directory: Path) -> int:
    """How often the kernel killed something in it."""
    for name in ("memory.oom_control", "memory.events"):
        if (directory / name).exists():
            fields = dict(line.split() for line in (directory / name).read_text().splitlines())
            return int(fields.get("oom_kill", 0))
    return 0


def warm_up(reference: str, socket: Path) -> dict[str, object]:
    """Warm a model, as far as it is done."""
    node = Node(socket)
    model = next(one for one in node.get("/v1/models") if one["reference"].startswith(reference))
    warmed = node.send("POST", f"/v1/models/{model['key']}/warm", {"seconds": 100})
    return {key: warmed[key] for key in ("bytes_total", "bytes_resident", "bytes_read",
                                         "seconds", "short_of_memory")}  # fmt: skip
