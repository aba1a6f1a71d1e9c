"""One connection of the fault proxy: requests are passed on as they stream, or spoiled."""

import contextlib
import http.client
import socket
import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from tests.support.rules import Rule, Seen

if TYPE_CHECKING:
    from tests.support.faults import FaultProxy

_SLICE = 1 << 16
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding"})


class Relay(BaseHTTPRequestHandler):
    """Handles the requests of one client, one after the other."""

    proxy: "FaultProxy"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        """Serve one request; connections that break are what this proxy is for."""
        try:
            super().handle_one_request()
        except (OSError, http.client.HTTPException):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing: everything is recorded."""

    def do_any(self) -> None:
        """Serve a request of any method."""
        seen = Seen(self.command, self.path, self.headers)
        rule = self.proxy._rule(seen)
        while rule.gate and not self.proxy.ending.is_set() and not rule.gate.wait(0.05):
            pass
        if rule.delay:
            self.proxy.ending.wait(rule.delay)
        if rule.status or rule.redirect_to:
            self._reply(rule, seen)
            return
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=120)
        upstream.connect()
        self.proxy.sockets.add(upstream.sock)
        raw = upstream.sock
        try:
            self._forward(upstream, rule, seen)
        finally:
            self.proxy.sockets.discard(raw)
            upstream.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_any

    # Answers of our own.

    def _reply(self, rule: Rule, seen: Seen) -> None:
        if not rule.early:
            for part in self._request_body():
                seen.received += len(part)
        headers = {"Content-Length": str(len(rule.body)), **rule.headers}
        if rule.early:
            headers["Connection"] = "close"
        if rule.redirect_to:
            headers["Location"] = f"http://{rule.redirect_to}{self.path}"
        seen.status = rule.status or 307
        self.send_response_only(seen.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(rule.body)
            seen.sent += len(rule.body)
        if rule.early:
            self.close_connection = True
            # Take what is still coming: a reset now would destroy the answer on its way.
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1(_SLICE):
                pass

    # To the registry.

    def _forward(self, upstream: http.client.HTTPConnection, rule: Rule, seen: Seen) -> None:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            # The 100 was ours to give (RFC 9110, section 10.1.1).
            if name.lower() == "expect" or (rule.ignore_range and name.lower() == "range"):
                continue
            upstream.putheader(name, value)
        upstream.endheaders()
        if not self._upload(upstream, rule, seen):
            return
        answer = upstream.getresponse()
        if rule.lose_answer:
            answer.read()
            self._reset()
            return
        self._answer(answer, rule, seen)

    def _upload(self, upstream: http.client.HTTPConnection, rule: Rule, seen: Seen) -> bool:
        """Pass the body on; whether an answer is to be expected."""
        stops = [n for n in (rule.drop_upload_after, rule.stall_upload_after) if n >= 0]
        stop = min(stops, default=-1)
        chunked = self._is_chunked(self.headers)
        listening = True
        for part in self._request_body():
            piece = part if stop < 0 else part[: stop - seen.received]
            self.proxy.throttle.take(len(piece))
            if listening and piece:
                # A registry may refuse and hang up early; its answer is read all the same.
                try:
                    upstream.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                except OSError:
                    listening = False
            seen.received += len(piece)
            if 0 <= stop <= seen.received:
                if rule.stall_upload_after == stop:
                    self.proxy.ending.wait()
                self._reset()
                return False
        if chunked and listening:
            with contextlib.suppress(OSError):
                upstream.send(b"0\r\n\r\n")
        return True

    def _request_body(self) -> Iterator[bytes]:
        """Yield the request's body as it comes, whichever way it is framed (RFC 9112, section 6)."""
        if not self._is_chunked(self.headers):
            yield from self._exactly(int(self.headers.get("Content-Length") or 0))
            return
        while size := int(self.rfile.readline(1000).split(b";")[0], 16):
            yield from self._exactly(size)
            self.rfile.readline(1000)
        while self.rfile.readline(1000).strip():
            pass

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            part = self.rfile.read1(min(_SLICE, size))
            if not part:
                raise ConnectionError("the client ended in the middle of a body")
            size -= len(part)
            yield part

    # Back to the client.

    def _answer(self, answer: http.client.HTTPResponse, rule: Rule, seen: Seen) -> None:
        replaced = {name.lower() for name in rule.replace_headers}
        seen.status = answer.status
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in replaced | _HOP_BY_HOP:
                self.send_header(name, value)
        for name, new in rule.replace_headers.items():
            if new is not None:
                self.send_header(name, new)
        # Without its true length the end of the connection is the end of the body.
        if answer.length is None or "content-length" in replaced:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD" or answer.status in (204, 304):
            return
        self._download(answer, rule, seen)
        if rule.stop >= 0:
            self.close_connection = True
            if rule.reset_after == rule.stop:
                self._reset()
            elif rule.stall_after == rule.stop:
                self.proxy.ending.wait()

    def _download(self, answer: http.client.HTTPResponse, rule: Rule, seen: Seen) -> None:
        size, pause = rule.slice_pause
        while rule.stop < 0 or seen.sent < rule.stop:
            wanted = size or _SLICE
            if rule.stop >= 0:
                wanted = min(wanted, rule.stop - seen.sent)
            part = answer.read(wanted)
            if not part:
                return
            at = rule.flip - seen.sent
            if 0 <= at < len(part):
                part = part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]
            self.proxy.throttle.take(len(part))
            self.wfile.write(part)
            seen.sent += len(part)
            if pause:
                self.proxy.ending.wait(pause)

    @staticmethod
    def _is_chunked(headers) -> bool:
        return "chunked" in (headers.get("Transfer-Encoding") or "").lower()

    def _reset(self) -> None:
        """End with RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
