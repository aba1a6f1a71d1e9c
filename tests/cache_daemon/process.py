"""The cache daemon as a process; started, killed, started again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from modelpack.verbs.node import Node
from modelpack.verbs.node_address import SocketAddress
from tests.support.processes import wait_until


class Daemon:
    """A daemon on a directory; started, killed, started again."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket = directory / "cache.sock"
        self.options = options
        self.process = None
        self.log = directory / "daemon.log"  # a file: a pipe that nobody reads fills up
        self._logged = 0

    def start(self, **env):
        log = self.log.open("ab")
        self._logged = log.tell()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cache_daemon.main", f"--root={self.directory / 'root'}",
             f"--socket={self.socket}", "--keep-free=0", "--grace-seconds=5", *self.options],
            stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, **env},
        )  # fmt: skip
        log.close()
        wait_until(lambda: self.process.poll() is not None or self.answers())
        if self.process.poll() is not None:
            raise AssertionError(f"exit {self.process.returncode}: {self.said()}")
        return self

    def answers(self):
        try:
            return Node(self.socket).get("/v1/ready")["status"] == "ready"
        except Exception:  # noqa: BLE001  # not yet
            return False

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(timeout=30), self.said()

    def said(self):
        """What this process has logged so far."""
        return self.log.read_bytes()[self._logged :].decode()

    def lines(self, message=""):
        """The log lines of this process, with this message; for daemons that log as JSON."""
        found = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        return [line for line in found if not message or line["message"] == message]

    def metrics(self):
        """Return all samples: name with labels, as Prometheus sees them, to value."""
        connection = SocketAddress(self.socket).connection()
        connection.request("GET", "/metrics")
        with connection.getresponse() as response:
            text = response.read().decode()
        connection.close()
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

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


def trusted(registry) -> str:
    """The option that lets the daemon ask the token server of a registry, if it has one."""
    tokens = registry.extra.get("tokens")
    return f'--trusted-hosts=["{urlsplit(tokens.url).netloc}"]' if tokens else "--trusted-hosts=[]"
