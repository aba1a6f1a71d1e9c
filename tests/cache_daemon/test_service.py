"""The daemon as a service: ready, reload, stop; and the unit that runs it."""

import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import wait_until

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "modelpack-cache-daemon.service"


@pytest.fixture
def listener(tmp_path):
    """What systemd listens with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.settimeout(30)
        yield bound


def test_systemd_is_told(daemon, listener, tmp_path):
    """Ready when the API listens, stopping when it ends."""
    one = daemon().start(NOTIFY_SOCKET=str(tmp_path / "notify"))
    assert listener.recv(100) == b"READY=1"
    assert one.stop()[0] == 0
    assert listener.recv(100) == b"STOPPING=1"


def test_reload_applies_what_is_safe_and_names_the_rest(daemon, tmp_path):
    """The log level counts at once; for other settings it is said that a restart is needed."""
    config = tmp_path / "cache.toml"
    config.write_text('log_level = "warning"\nslots = 2\n')
    one = daemon().start(MODELPACK_CACHE_CONFIG=str(config))
    assert one.lines() == []
    config.write_text('log_level = "info"\nslots = 3\njobs = 9\n')
    one.process.send_signal(signal.SIGHUP)
    wait_until(lambda: one.lines("restart needed"))
    [line] = one.lines("restart needed")
    assert (line["level"], line["applied"], line["restart_needed"]) == (
        "WARNING", "log_level", "slots jobs",
    )  # fmt: skip
    config.write_text('log_level = "info"\nslots = 2\n')
    one.process.send_signal(signal.SIGHUP)
    wait_until(lambda: one.lines("settings read again"))
    config.write_text('slots = "many"\n')
    one.process.send_signal(signal.SIGHUP)
    wait_until(lambda: one.lines("settings not read"))
    assert "slots" in one.lines("settings not read")[0]["error"]
    config.write_text("not toml")
    one.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(one.lines("settings not read")) == 2)
    assert one.answers()
    code, said = one.stop()
    assert code == 0
    assert "Traceback" not in said


def test_the_unit_is_sound():
    """systemd reads it without a complaint, except that the program is not installed here."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", UNIT], capture_output=True, text=True, check=False
    )
    complaints = [one for one in done.stderr.splitlines() if UNIT.name in one]
    assert [one for one in complaints if "is not executable" not in one] == []
    assert "is not executable" in done.stderr or done.returncode == 0
    score = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    exposure = re.search(r"Overall exposure level for \S+ ([0-9.]+)", score.stdout)
    assert exposure
    assert float(exposure[1]) <= 1.5
