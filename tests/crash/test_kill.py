"""kill -9 at random instants, then the same command again."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from modelpack.spec.reference import Reference
from modelpack.verbs.push import PushOptions, push
from tests.support.faults import fault_proxy
from tests.support.servers import docker_registry
from tests.support.weights import make_model, tree

MODELPACK = [sys.executable, "-m", "modelpack.cli.entry"]
SLOW = {"slice_pause": (200_000, 0.004)}  # so that there is something to interrupt
TIMES = int(os.environ.get("MODELPACK_KILLS", "50"))


def start(*arguments, jobs=4):
    return subprocess.Popen(
        [*MODELPACK, *arguments, "--json", f"--jobs={jobs}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def interrupt(process, after, how=signal.SIGKILL):
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
        process.wait(30)
    process.stdout.close()
    process.stderr.close()


def stray(directory):
    return [p.name for p in directory.iterdir() if "modelpack" in p.name]


def instants(seed, *arguments):
    """Instants within the time that the command takes when nobody interrupts it."""
    started = time.monotonic()
    finish(start(*arguments))
    longest = time.monotonic() - started
    generator = random.Random(seed)
    return [generator.uniform(0.1, longest) for _ in range(TIMES)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pulls_continue_after_kill_9(tmp_path, registry, name, session):
    """At fifty random instants: the next run is right and fetches no more than a piece per worker
    again; no file ever has its name without being complete, and nothing is left behind."""
    model = make_model(tmp_path / "m", megabytes=60)
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    total = sum(p.stat().st_size for p in model.rglob("*") if p.is_file())
    expected = tree(model)
    with fault_proxy(registry.host) as proxy:
        proxy.add(r"GET .*/blobs/", **SLOW)
        reference = f"{proxy.host}/{name}:v1"
        interrupted = 0
        for number, instant in enumerate(instants(1, "pull", reference, str(tmp_path / "first"))):
            out = tmp_path / f"out-{number}"
            proxy.seen.clear()
            process = start("pull", reference, str(out))
            interrupt(process, instant)
            interrupted += process.returncode != 0
            found = tree(out) if out.exists() else {}
            assert all(expected.get(path) == digest for path, digest in found.items())
            done = finish(start("pull", reference, str(out)))
            assert tree(out) == expected
            assert stray(tmp_path) == []
            # Sent by the registry in both runs; a piece of 16 MiB per worker may be sent twice.
            assert proxy.bytes_sent() <= total + 4 * (16 << 20) + 100_000
            assert done["bytes_moved"] <= total + 100_000
    assert interrupted > TIMES // 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pushes_continue_after_kill_9(tmp_path, name):
    """At fifty random instants: the next run publishes the right artifact."""
    model = make_model(tmp_path / "m", megabytes=60)
    expected = tree(model)
    interrupted = 0
    with docker_registry(tmp_path / "first") as registry:
        moments = instants(2, "push", str(model), f"{registry.host}/{name}:v1")
    for number, instant in enumerate(moments):
        with docker_registry(tmp_path / f"r{number}") as registry:
            reference = f"{registry.host}/{name}:v1"
            process = start("push", str(model), reference)
            interrupt(process, instant)
            interrupted += process.returncode != 0
            finish(start("push", str(model), reference))
            if number % 10 == 0:
                finish(start("pull", reference, str(tmp_path / f"out-{number}")))
                assert tree(tmp_path / f"out-{number}") == expected
            else:
                verified = finish(start("verify", str(model), reference))
                assert verified["ok"]
    assert interrupted > TIMES // 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pushes_to_layouts_continue_after_kill_9(tmp_path):
    """The same for oci:DIR, and what was written is continued."""
    model = make_model(tmp_path / "m", megabytes=60)
    for number, instant in enumerate(
        instants(3, "push", str(model), f"oci:{tmp_path / 'first'}:v1")
    ):
        reference = f"oci:{tmp_path / f'layout-{number}'}:v1"
        interrupt(start("push", str(model), reference), instant)
        finish(start("push", str(model), reference))
        assert finish(start("verify", str(model), reference))["ok"]
        # What stays beside the layout's own files is locks, never bytes.
        ours = tmp_path / f"layout-{number}" / ".modelpack"
        assert [p for p in ours.rglob("*") if p.is_file() and p.stat().st_size] == []


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_politely(how, code, tmp_path, registry, name, model, session):
    """Ctrl-C and SIGTERM end soon, say how to go on, and leave a state that continues."""
    push(str(model), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    with fault_proxy(registry.host) as proxy:
        rule = proxy.add(r"GET .*/blobs/", slice_pause=(50_000, 0.05))
        out = tmp_path / "out"
        process = start("pull", f"{proxy.host}/{name}:v1", str(out))
        deadline = time.monotonic() + 30
        while proxy.bytes_sent() < 400_000 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        _, err = process.communicate(timeout=30)
        assert process.returncode == code
        assert b"it continues" in err
        assert b"Traceback" not in err
        assert not out.exists()
        rule.times = 0
        finish(start("pull", f"{proxy.host}/{name}:v1", str(out)))
    assert tree(out) == tree(model)
    assert stray(tmp_path) == []
