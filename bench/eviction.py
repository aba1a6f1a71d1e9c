"""Eviction on traces: `python -m bench.eviction`. Writes results/eviction.json and a plot.

Every policy runs on the same traces (bench/trace.py) with the same rules (bench/simulate.py). The
goal is the share of fetching, in seconds that pods would wait, that the cache avoids.
"""

import json
import os
import random
import statistics
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench import bounds, policies, simulate, trace

SEEDS = int(os.environ.get("BENCH_SEEDS", "30"))
SHARES = (0.1, 0.25, 0.5)
RATES = ("seconds", "hits", "bytes")
# A node that starts many pods, and one that starts few.
NODES = {"110 pods a day": {"pods_per_day": 110.0}, "30 pods a day": {"pods_per_day": 30.0}}
BEST, LIMIT = "best known with foresight", "no policy can do better"
RESULTS = Path("bench/results")


def one_trace(job: tuple[str, int]) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by share of the catalogue and policy, the rates on one trace."""
    node, seed = job
    found = trace.generate(seed, **NODES[node])
    classes = simulate.Classes.of(found.models.values())
    results = {}
    for share in SHARES:
        limit = int(found.size * share)
        runs = {
            name: simulate.Node(found, limit, make(), classes).run()
            for name, make in policies.POLICIES.items()
        }
        rates = {name: run.score.rates() for name, run in runs.items()}
        ours = runs[policies.OURS]
        assert all(run.score.refused == ours.score.refused for run in runs.values())
        problem = bounds.Problem.of(ours)
        upper = {what: problem.upper(what) for what in RATES}
        rates[LIMIT] = {what: value for what, (value, _) in upper.items()}
        for rule in bounds.RULES:
            eye = bounds.Clairvoyant(ours, rule, upper["seconds"][1])
            rates[rule] = simulate.Node(found, limit, eye, classes).run().score.rates()
        known = [*bounds.RULES, *policies.POLICIES]
        rates[BEST] = {what: max(rates[name][what] for name in known) for what in RATES}
        for name, rate in rates.items():
            for what in RATES:
                assert rate[what] <= rates[LIMIT][what] + 1e-9, (name, what, seed, share)
        results[f"{share:.0%}"] = rates
    return results


def summary(runs: list[dict]) -> dict[str, object]:
    """Return means over traces, and by how much ours avoids more seconds, trace by trace."""
    table: dict[str, object] = {}
    for share in runs[0]:
        rows = {}
        for name in runs[0][share]:
            row: dict[str, object] = {
                what: round(statistics.mean(run[share][name][what] for run in runs), 4)
                for what in RATES
            }
            if name != policies.OURS:
                for what in RATES:
                    ahead = [
                        run[share][policies.OURS][what] - run[share][name][what] for run in runs
                    ]
                    low, high = interval(ahead)
                    row[f"ours_ahead_{what}"] = [
                        round(statistics.mean(ahead), 4), round(low, 4), round(high, 4),
                    ]  # fmt: skip
            rows[name] = row
        table[share] = rows
    return table


def interval(values: list[float], rounds: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean."""
    generator = random.Random(1)
    means = sorted(statistics.mean(generator.choices(values, k=len(values))) for _ in range(rounds))
    return means[round(rounds * 0.025)], means[round(rounds * 0.975)]


def main() -> None:
    from bench.plot import draw_eviction

    started = time.monotonic()
    results: dict[str, object] = {
        "commit": subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                                 text=True, check=False).stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "traces": SEEDS,
    }  # fmt: skip
    with ProcessPoolExecutor(2) as pool:
        for node in NODES:
            runs = list(pool.map(one_trace, [(node, seed) for seed in range(SEEDS)]))
            results[node] = summary(runs)
    (RESULTS / "eviction.json").write_text(json.dumps(results, indent=1) + "\n")
    node = next(iter(NODES))
    draw_eviction(results[node], SEEDS, (policies.OURS, BEST, LIMIT), RESULTS / "eviction.png")
    for node in NODES:
        print(node)
        for share, rows in results[node].items():
            for name, row in rows.items():
                ahead = row.get("ours_ahead_seconds", "")
                print(f"  {share:>4} {name:28}", *(f"{row[what]:.3f}" for what in RATES), ahead)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
