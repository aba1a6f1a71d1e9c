"""A proxy in front of a real registry that misbehaves on demand, and counts."""

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Rule:
    """What to do with requests whose "METHOD path" matches, `times` times, after `skip` of them."""

    pattern: str
    times: int = 1_000_000
    skip: int = 0
    status: int = 0  # answer this instead of asking the registry
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    reset_after: int = -1  # bytes of the body, then RST
    stall_after: int = -1  # bytes of the body, then nothing until the test ends
    drop_upload_after: int = -1  # bytes of the request's body, then RST
    slice_pause: tuple = ()  # (bytes, seconds): a trickle
    ignore_range: bool = False
    replace_headers: dict = field(default_factory=dict)
    flip: int = -1  # byte of the body to damage
    cut: int = -1  # close cleanly after so many bytes of the body


@dataclass
class Seen:
    """One request as it came in."""

    method: str
    path: str
    headers: dict
    received: int = 0
    sent: int = 0


class FaultProxy:
    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.rules: list[Rule] = []
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.ending = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError):
                    return super().handle_one_request()
                self.close_connection = True

            def do_any(self) -> None:
                outer.relay(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_any

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"

    def add(self, pattern: str, **what) -> Rule:
        rule = Rule(pattern, **what)
        self.rules.append(rule)
        return rule

    def requests(self, pattern: str) -> list[Seen]:
        return [one for one in self.seen if re.search(pattern, f"{one.method} {one.path}")]

    def bytes_sent(self, pattern: str = r"GET .*/blobs/") -> int:
        return sum(one.sent for one in self.requests(pattern))

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

    def relay(self, client: BaseHTTPRequestHandler) -> None:
        seen = Seen(client.command, client.path, dict(client.headers))
        rule = self._rule(seen)
        length = int(client.headers.get("Content-Length") or 0)
        if rule.status and not (300 <= rule.status < 400 and length):
            while length > 0:
                length -= len(client.rfile.read(min(length, 1 << 16)) or b"x" * length)
            self._reply(client, rule)
            return
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            self._forward(client, connection, rule, seen, length)
        finally:
            connection.close()

    def _reply(self, client: BaseHTTPRequestHandler, rule: Rule) -> None:
        client.send_response(rule.status)
        for name, value in {"Content-Length": str(len(rule.body)), **rule.headers}.items():
            client.send_header(name, value)
        client.end_headers()
        if client.command != "HEAD":
            client.wfile.write(rule.body)

    def _forward(self, client, connection, rule: Rule, seen: Seen, length: int) -> None:
        connection.putrequest(
            client.command, client.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in client.headers.items():
            if not (rule.ignore_range and name.lower() == "range"):
                connection.putheader(name, value)
        connection.endheaders()
        while seen.received < length:
            if 0 <= rule.drop_upload_after <= seen.received:
                connection.sock.close()
                return self._reset(client)
            part = client.rfile.read(min(1 << 16, length - seen.received))
            if not part:
                connection.sock.close()
                return None
            connection.send(part)
            seen.received += len(part)
        answer = connection.getresponse()
        client.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {key.lower() for key in rule.replace_headers}:
                client.send_header(name, value)
        for name, value in rule.replace_headers.items():
            if value is not None:
                client.send_header(name, value)
        client.end_headers()
        if client.command == "HEAD":
            return None
        return self._body(client, answer, rule, seen)

    def _body(self, client, answer, rule: Rule, seen: Seen) -> None:
        size = rule.slice_pause[0] if rule.slice_pause else 1 << 16
        stops = [n for n in (rule.reset_after, rule.stall_after, rule.cut) if n >= 0]
        stop = min(stops, default=-1)
        while True:
            wanted = min(size, stop - seen.sent) if stop >= 0 else size
            part = answer.read(wanted) if wanted else b""
            if not part:
                break
            if seen.sent <= rule.flip < seen.sent + len(part):
                at = rule.flip - seen.sent
                part = part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]
            client.wfile.write(part)
            seen.sent += len(part)
            if rule.slice_pause:
                self.ending.wait(rule.slice_pause[1])
        if stop >= 0:
            client.close_connection = True
            if rule.reset_after >= 0:
                self._reset(client)
            elif rule.stall_after >= 0:
                self.ending.wait(120)

    def _reset(self, client) -> None:
        client.close_connection = True
        client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.connection.close()


@contextlib.contextmanager
def fault_proxy(upstream: str):
    proxy = FaultProxy(upstream)
    thread = threading.Thread(target=proxy.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ending.set()
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()


def wait_until(condition, seconds: float = 30) -> None:
    """Poll for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.01)
