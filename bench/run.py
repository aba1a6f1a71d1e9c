"""The whole benchmark: `python -m bench.run`. See README.md for the method."""

import compileall
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from bench import measure, memory, mirror, node, oracle, peers, plot, scale, weights

GB = float(os.environ.get("BENCH_GB", "2"))
PAIRS = int(os.environ.get("BENCH_PAIRS", "9"))
DATA = Path(os.environ.get("BENCH_DATA", "bench/.data")).absolute()
RESULTS = Path("bench/results")
MODELPACK = str(Path(sys.executable).with_name("modelpack"))
NAME = "bench/model"


@contextmanager
def registry(storage: Path, more: str = ""):
    """A docker-registry on a free port, with more configuration; yields its host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = storage.with_suffix(".yml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n{more}"
    )
    with (storage.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=log, stderr=log
        )
        try:
            for _ in range(100):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/").close()
                    break
                except urllib.error.HTTPError as refused:  # it is there, and wants a password
                    refused.close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def modelpack(*arguments: str) -> list[str]:
    return [MODELPACK, *arguments]


def call(*arguments: str) -> dict:
    """Run modelpack once and return what it says."""
    done = subprocess.run(modelpack(*arguments, "--json"), check=True, capture_output=True)
    return json.loads(done.stdout)


def fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return path


def bench_pull(model: Path, results: dict) -> None:
    with registry(fresh(DATA / "registry")) as host:
        pushed = call("push", str(model), f"{host}/{NAME}:v1")
        out = DATA / "out"

        def ours() -> measure.Run:
            fresh(out)
            os.sync()
            return measure.run(modelpack("pull", f"{host}/{NAME}:v1", str(out)))

        ours()
        check = subprocess.run(["diff", "-r", str(model), str(out)], check=False)
        assert check.returncode == 0, "the pulled model is not the pushed one"
        for other, command in (
            ("curl", peers.curl_pull), ("skopeo", peers.skopeo_pull), ("oras-py", peers.oras_pull),
        ):  # fmt: skip
            where = DATA / other

            def theirs(command=command, where=where) -> measure.Run:
                line = command(host, NAME, "v1", where)
                os.sync()
                return measure.run(line)

            result = measure.pairs(ours, theirs, PAIRS)
            results[f"pull / {other}"] = result
            plot.draw(
                "pull", other, result, pushed["bytes_total"] / 1e6, RESULTS / f"pull-{other}.png"
            )
            print(f"pull / {other}: {result['speed_ratio']} {result['interval']}", flush=True)
            fresh(where)
        versions(model, host, results)
        bench_node(host, pushed["bytes_total"], results)
        layers = peers.save_layers(host, NAME, "v1", fresh(DATA / "layers"))
    bench_push(model, layers, pushed["bytes_total"], results)


def bench_node(host: str, total: int, results: dict) -> None:
    """Compare a cold fetch by the cache daemon with a pull, and time leases."""
    reference, out = f"{host}/{NAME}:v1", DATA / "out"

    def pull() -> measure.Run:
        fresh(out)
        os.sync()
        return measure.run(modelpack("pull", reference, str(out)))

    port = mirror.free_port()
    options = (f"--mirror=127.0.0.1:{port}", f'--mirror-for=["{host}/bench"]')
    with node.daemon(fresh(DATA / "node"), host, *options) as (socket_path, process):
        fetch = node.cold_fetch(MODELPACK, reference, socket_path)
        result = measure.pairs(fetch, pull, PAIRS)
        del result["ours_rss"]  # that of the command that waits
        results["cold fetch by the daemon / pull"] = result
        plot.draw("daemon", "pull", result, total / 1e6, RESULTS / "daemon-pull.png")
        print(f"daemon / pull: {result['speed_ratio']} {result['interval']}", flush=True)
        named = node.by_digest(MODELPACK, reference, socket_path)
        results["lease on a cached model, milliseconds"] = node.leases(named, socket_path)
        print(results["lease on a cached model, milliseconds"], flush=True)
        rate = node.leases_at_a_rate(named, socket_path)
        results["lease on a cached model at a rate, milliseconds"] = rate
        print(rate, flush=True)
        served = mirror.compare(host, NAME, f"127.0.0.1:{port}", DATA, PAIRS)
        results["ranges from the mirror / nginx"] = served
        plot.draw("mirror", "nginx", served, served["bytes"] / 1e6, RESULTS / "mirror-nginx.png")
        print(f"mirror / nginx: {served['speed_ratio']} {served['interval']}", flush=True)
        results["daemon, peak memory"] = node.resident(process)
        results["daemon, share of a processor when idle"] = node.idle(process)
        print("idle:", results["daemon, share of a processor when idle"], flush=True)
    small_memory(host, total, results)
    results["refusals, cached and not"] = oracle.measure(MODELPACK, DATA, registry)
    print(results["refusals, cached and not"], flush=True)
    results["daemon, start with 1 TB"] = node.start_with_a_terabyte(DATA)
    print(results["daemon, start with 1 TB"], flush=True)
    fresh(out)


def small_memory(host: str, total: int, results: dict) -> None:
    """Fetch and warm up in a control group of 512 MiB."""
    reference = f"{host}/{NAME}:v1"
    with (
        memory.group(512 << 20) as group,
        node.daemon(fresh(DATA / "small"), host, group=str(group)) as (socket_path, process),
    ):
        fetch = node.cold_fetch(MODELPACK, reference, socket_path)
        took = sorted(fetch().seconds for _ in range(3))[1]
        found = {
            "megabytes_per_second": round(total / took / 1e6),
            "warm_up": memory.warm_up(reference, socket_path),
            "daemon_resident": node.resident(process),
            "killed_for_memory": memory.oom_kills(group),
        }
    results["fetch and warm-up in 512 MiB"] = found
    print("512 MiB:", found, flush=True)
    fresh(DATA / "small")


def versions(model: Path, host: str, results: dict) -> None:
    """Push again, push and pull a second version."""
    again = min((call("push", str(model), f"{host}/{NAME}:v1") for _ in range(3)),
                key=lambda done: done["seconds"])  # fmt: skip
    started = time.monotonic()
    call("push", str(model), f"{host}/{NAME}:v1")
    results["push again, unchanged"] = {
        "seconds": again["seconds"], "with_start_of_python": round(time.monotonic() - started, 3),
        "bytes_moved": again["bytes_moved"],
    }  # fmt: skip
    second = DATA / "v2"
    weights.change_tensors(model, second, 0.05)
    call("push", str(second), f"{host}/{NAME}:v2")
    first = fresh(DATA / "first")
    call("pull", f"{host}/{NAME}:v1", str(first))
    pulled = call("pull", f"{host}/{NAME}:v2", str(first))
    share = pulled["bytes_moved"] / pulled["bytes_total"]
    results["second version, 5 % of tensors changed"] = {
        "bytes_moved": pulled["bytes_moved"], "share": round(share, 4), "seconds": pulled["seconds"],
    }  # fmt: skip
    print("v2:", results["second version, 5 % of tensors changed"], flush=True)
    both = [f"{host}/{NAME}:v{number}" for number in (1, 2)]
    on_disk = node.disk_of_versions(DATA, both, host)
    results["bytes on the disk of a node with xfs, first and second version"] = on_disk
    print("on disk:", on_disk, flush=True)
    fresh(second)
    fresh(first)


def bench_push(model: Path, layers: list[tuple[Path, str]], total: int, results: dict) -> None:
    def with_registry(command) -> measure.Run:
        storage = fresh(DATA / "push-registry")
        os.sync()
        with registry(storage) as host:
            return measure.run(command(host))

    result = measure.pairs(
        lambda: with_registry(
            lambda host: modelpack("push", "--no-digest-cache", str(model), f"{host}/{NAME}:v1")
        ),
        lambda: with_registry(lambda host: peers.curl_push(host, NAME, layers, 4)),
        PAIRS,
    )
    results["push / curl"] = result
    plot.draw("push", "curl", result, total / 1e6, RESULTS / "push-curl.png")
    print(f"push / curl: {result['speed_ratio']} {result['interval']}", flush=True)


def main() -> None:
    # As pip does when it installs. Where PYTHONDONTWRITEBYTECODE is set, an editable install would
    # otherwise compile itself at every start.
    for package in ("modelpack", "cache_daemon"):
        compileall.compile_dir(package, quiet=1)
    os.environ["XDG_CACHE_HOME"] = str(fresh(DATA / "cache"))
    os.environ["DOCKER_CONFIG"] = str(fresh(DATA / "docker"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    model = DATA / f"model-{GB:g}"
    weights.make_model(model, round(GB * 1e9))
    results: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "commit": subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                                 text=True, check=False).stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "gigabytes": GB,
        "pairs": PAIRS,
    }  # fmt: skip
    results["index of 1 TB"] = scale.index_of_one_terabyte()
    print(results["index of 1 TB"], flush=True)
    results["peak memory"] = scale.memory_by_size(DATA, MODELPACK, registry)
    print(results["peak memory"], flush=True)
    bench_pull(model, results)
    (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for path in DATA.iterdir():
        if path != model:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
