"""One plot per comparison: all runs of both sides, and the ratio."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def draw(name: str, other: str, result: dict, megabytes: float, path: Path) -> None:
    """Draw the rates of every run, side by side, as they alternated."""
    ours = [megabytes / s for s in result["ours_seconds"]]
    theirs = [megabytes / s for s in result["other_seconds"]]
    low, high = result["interval"]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    turns = range(1, len(ours) + 1)
    axes.plot(turns, ours, "o-", color="#1f6feb", label="modelpack")
    axes.plot(turns, theirs, "s--", color="#8b949e", label=other)
    axes.set_ylim(bottom=0)
    axes.set_xticks(list(turns))
    axes.set_xlabel("pair")
    axes.set_ylabel("MB/s, synced")
    axes.set_title(
        f"{name}: {result['speed_ratio']:.2f} times {other} (95 %: {low:.2f} to {high:.2f})"
    )
    axes.legend(loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_eviction(table: dict, traces: int, special: tuple[str, str, str], path: Path) -> None:
    """Draw what each policy avoids, by size of the disk, between nothing and the bound."""
    ours, best, limit = special
    shares = list(table)
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name in table[shares[0]]:
        values = [100 * table[share][name]["seconds"] for share in shares]
        if name == limit:
            axes.plot(shares, values, "k:", label=name)
        elif name in {ours, best}:
            style = ("o-", "#1f6feb") if name == ours else ("^-", "#2da44e")
            axes.plot(shares, values, style[0], color=style[1], label=name, zorder=3)
        elif name in {"GDSF", "LRU", "LFU", "FIFO", "largest first"}:
            axes.plot(shares, values, "--", marker=f"${name[0]}$", color="#8b949e", label=name)
    axes.set_xlabel("disk, as a share of all models")
    axes.set_ylabel("% of fetch seconds avoided")
    axes.set_title(f"eviction: 100 models, {traces} traces of three weeks")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
