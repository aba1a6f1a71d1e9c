"""Running a command and saying what it took; comparing two in interleaved pairs."""

import os
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One run: wall and processor seconds, peak resident bytes of the largest process."""

    seconds: float
    cpu: float
    rss: int


def run(command: list[str], **options: object) -> Run:
    """Run a command to its end and the disk's; raises if it fails."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, **options)
        peak = 0
        while True:
            # ru_maxrss would count the memory of this process before exec; VmHWM does not.
            peak = max(peak, _high_water(process.pid))
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode()[-2000:]
            raise RuntimeError(f"{command[:4]}: exit {process.returncode}: {said}")
    os.sync()
    return Run(time.monotonic() - started, usage.ru_utime + usage.ru_stime, peak)


def _high_water(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def pairs(ours: Callable[[], Run], other: Callable[[], Run], count: int) -> dict[str, object]:
    """Alternate two commands; returns all seconds and the ratio other/ours (our speed-up)."""
    mine: list[Run] = []
    theirs: list[Run] = []
    for number in range(count):
        for side in (0, 1) if number % 2 else (1, 0):
            (theirs if side else mine).append((other if side else ours)())
    ratios = [b.seconds / a.seconds for a, b in zip(mine, theirs, strict=True)]
    low, high = interval(ratios)
    return {
        "ours_seconds": [round(r.seconds, 3) for r in mine],
        "other_seconds": [round(r.seconds, 3) for r in theirs],
        "ours_cpu": round(statistics.median(r.cpu for r in mine), 2),
        "other_cpu": round(statistics.median(r.cpu for r in theirs), 2),
        "ours_rss": max(r.rss for r in mine),
        "speed_ratio": round(statistics.median(ratios), 3),
        "interval": [round(low, 3), round(high, 3)],
    }


def interval(values: list[float], rounds: int = 4000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    generator = random.Random(1)
    medians = sorted(
        statistics.median(generator.choices(values, k=len(values))) for _ in range(rounds)
    )
    return medians[round(rounds * 0.025)], medians[round(rounds * 0.975)]
