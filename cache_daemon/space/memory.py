"""How much memory may be filled with page cache without anybody having to leave."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_GROUPS: Final = Path("/sys/fs/cgroup")
_SHARE: Final = 0.7  # of a control group: a group that is full reclaims what was just read


def spare_memory(keep_free: float, proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Return the bytes that may be read into the page cache now; never negative.

    The machine keeps `keep_free` of its memory available (kubelet evicts pods at 100 MiB by
    default), and no control group that this process is in is filled above a share of its limit.
    """
    found = dict(_meminfo(proc / "meminfo"))
    spare = found.get("MemAvailable", 0) - int(found.get("MemTotal", 0) * keep_free)
    for limit, used, cache in _limits(proc / "self" / "cgroup", groups):
        # Page cache that is there already may be what is being warmed: it is not free.
        spare = min(spare, int((limit - (used - cache)) * _SHARE) - cache)
    return max(0, spare)


def _meminfo(path: Path) -> Iterator[tuple[str, int]]:
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        value = rest.split()
        if value and value[0].isdigit():
            yield name, int(value[0]) * 1024


def _limits(memberships: Path, groups: Path) -> Iterator[tuple[int, int, int]]:
    """Yield limit, use, and how much of that is page cache, of every group that has a limit."""
    for line in memberships.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _walk(groups, path, ("memory.max", "memory.current", "file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
            yield from _walk(groups / "memory", path, names)


def _walk(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[tuple[int, int, int]]:
    parts = [part for part in path.split("/") if part]
    for length in range(len(parts) + 1):
        group = root.joinpath(*parts[:length])
        try:
            limit = (group / names[0]).read_text().strip()
            used = int((group / names[1]).read_text())
            stat = dict(
                line.split()[:2] for line in (group / "memory.stat").read_text().splitlines()
            )
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < 1 << 60:
            yield int(limit), used, int(stat.get(names[2], 0))
