"""The cache daemon as a process; started, killed, started again."""

import signal
import subprocess
import sys
from pathlib import Path

from modelpack.verbs.node import Node
from tests.support.processes import wait_until


class Daemon:
    """A daemon on a directory; started, killed, started again."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket = directory / "cache.sock"
        self.options = options
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cache_daemon.main", f"--root={self.directory / 'root'}",
             f"--socket={self.socket}", "--keep-free=0", "--grace-seconds=5", *self.options],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_until(lambda: self.process.poll() is not None or self.answers())
        if self.process.poll() is not None:
            said = self.process.communicate()[1].decode()
            raise AssertionError(f"exit {self.process.returncode}: {said}")
        return self

    def answers(self):
        try:
            return Node(self.socket).get("/v1/ready")["status"] == "ready"
        except Exception:  # noqa: BLE001  # not yet
            return False

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said.decode()

    def node(self, *arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "modelpack.cli.entry", "node", *arguments,
             f"--socket={self.socket}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr

    def trees(self):
        return [path / "tree" for path in (self.directory / "root" / "snapshots").iterdir()]
