"""A proxy in front of a real registry that misbehaves on demand, and counts."""

import contextlib
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.rules import Rule, Seen

__all__ = ["FaultProxy", "Rule", "Seen", "fault_proxy", "wait_until"]


class Throttle:
    """A token bucket that all connections share; `rate` in bytes per second, 0 for none."""

    def __init__(self, ending: threading.Event) -> None:
        self.rate = 0.0
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._ending = ending

    def take(self, size: int) -> None:
        """Wait until so many bytes more may pass."""
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / self.rate
            wait = self._free_at - now
        self._ending.wait(wait)


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that it can end all of them and wait for their threads."""

    request_queue_size = 128
    daemon_threads = False
    block_on_close = True

    def __init__(self, proxy: "FaultProxy") -> None:
        handler = type("BoundRelay", (Relay,), {"proxy": proxy})
        super().__init__(("127.0.0.1", 0), handler)
        self._proxy = proxy

    def process_request(self, request, client_address) -> None:
        self._proxy.sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self._proxy.sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address) -> None:
        self._proxy.failures.append(sys.exc_info()[1])


class FaultProxy:
    """Passes everything on to `upstream`, "host:port", except where a rule says otherwise.

    The client's Host header goes with it, so that the addresses the registry makes of it (uploads)
    lead through the proxy too. `seen` has all requests in the order in which they began.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.rules: list[Rule] = []
        self.seen: list[Seen] = []
        self.ending = threading.Event()
        self.throttle = Throttle(self.ending)
        self.sockets: set[socket.socket] = set()
        self.failures: list[BaseException | None] = []
        self.lock = threading.Lock()
        self.server = _Server(self)
        self.host = f"127.0.0.1:{self.server.server_port}"

    def add(self, pattern: str, **what) -> Rule:
        """Add a rule; the first one that matches and is not used up counts."""
        rule = Rule(pattern, **what)
        self.rules.append(rule)
        return rule

    def requests(self, pattern: str) -> list[Seen]:
        """Return the requests whose "METHOD path" matches."""
        return [one for one in self.seen if re.search(pattern, f"{one.method} {one.path}")]

    def bytes_sent(self, pattern: str = r"GET .*/blobs/") -> int:
        """Return the bytes of all answers to such requests that left for the client."""
        return sum(one.sent for one in self.requests(pattern))

    def bytes_received(self, pattern: str = r"(PATCH|PUT|POST) .*/uploads/") -> int:
        """Return the bytes of all bodies of such requests that went on to the registry."""
        return sum(one.received for one in self.requests(pattern))

    def _rule(self, seen: Seen) -> Rule:
        with self.lock:
            self.seen.append(seen)
            for rule in self.rules:
                if re.search(rule.pattern, f"{seen.method} {seen.path}"):
                    if rule.skip > 0:
                        rule.skip -= 1
                    elif rule.times > 0:
                        rule.times -= 1
                        return rule
        return Rule("")

    def end(self) -> None:
        """End all connections, those that stall or wait too, and their threads."""
        self.ending.set()
        self.server.shutdown()
        for one in list(self.sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.server.server_close()


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy until the block ends; an error inside the proxy itself fails the test."""
    proxy = FaultProxy(upstream)
    thread = threading.Thread(target=proxy.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.end()
        thread.join()
    if proxy.failures:
        raise AssertionError("the fault proxy itself failed") from proxy.failures[0]
