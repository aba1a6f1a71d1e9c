"""Servers as child processes: on ports of their own, waited for, never outliving the tests."""

import contextlib
import http.client
import os
import random
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Below the range from which the kernel takes the ports of outgoing connections: a port that was
# free a moment ago must not become somebody's client port before the server binds it.
_PORTS = range(15_000, 30_000)
_START_SECONDS = 60
_STOP_SECONDS = 10
_reserved: dict[int, socket.socket] = {}
_logs: list[tuple[str, Path]] = []


def free_port() -> int:
    """Return a port that nobody listens on and that no other worker of this machine will be given.

    The reservation is an abstract Unix socket: it is exclusive, and gone with this process.
    """
    while True:
        port = random.SystemRandom().choice(_PORTS)
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0modelpack-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _reserved[port] = claim
        return port


def give_back(*ports: int) -> None:
    """End the reservation of ports whose server is gone."""
    for port in ports:
        if claim := _reserved.pop(port, None):
            claim.close()


@contextlib.contextmanager
def process(
    command: Sequence[object], log: Path, ready: Callable[[], bool], *, env: dict | None = None
) -> Iterator[subprocess.Popen]:
    """Run a server from when `ready` says so until the block ends; its output goes to `log`.

    A server that does not come up is an error with the end of its log. It is the leader of a
    process group, which is killed as a whole at the end, and the kernel kills it if we die first.
    """
    name = Path(str(command[0])).name
    with log.open("wb") as output:
        # Not preexec_fn: Python between fork and exec may deadlock where threads run.
        running = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0, env=env,
        )  # fmt: skip
    entry = (name, log)
    _logs.append(entry)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            if running.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{tail(log)}")
            time.sleep(0.02)
        # Whoever answered, it was not ours if ours is gone.
        if running.poll() is not None:
            raise RuntimeError(f"{name} ended at once:\n{tail(log)}")
        yield running
    finally:
        _logs.remove(entry)
        _stop(running)


def _stop(running: subprocess.Popen) -> None:
    running.terminate()
    try:
        running.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def tail(log: Path, start: int = 0, size: int = 4000) -> str:
    """Return the end of a log, at most `size` bytes, of what was written after `start`."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - size))
        return file.read().decode(errors="replace")


@dataclass(frozen=True)
class LogMark:
    """Where the logs of all running servers ended at one moment."""

    sizes: dict[Path, int]

    @classmethod
    def now(cls) -> "LogMark":
        """Mark the present ends."""
        return cls({log: log.stat().st_size for _, log in _logs})

    def since(self) -> Iterator[tuple[str, str]]:
        """Yield (server, what it wrote since) of the servers that wrote anything."""
        for name, log in _logs:
            if text := tail(log, self.sizes.get(log, 0)).strip():
                yield name, text


def answers(
    host: str, path: str = "/v2/", *, tls: ssl.SSLContext | None = None
) -> Callable[[], bool]:
    """Return a probe: whether an HTTP server at `host` answers `path`, whatever it answers."""

    def ready() -> bool:
        connection = (
            http.client.HTTPSConnection(host, timeout=2, context=tls)
            if tls
            else http.client.HTTPConnection(host, timeout=2)
        )
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                return False
            return True

    return ready


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Poll for something that another process does; fails if it does not happen in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.01)
