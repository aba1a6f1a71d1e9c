"""A server that answers what a test says, and remembers what it was asked."""

import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Asked:
    method: str
    path: str
    headers: dict
    body: bytes = b""


@dataclass
class Say:
    """An answer. Without `length` the connection's end is the body's."""

    status: int = 200
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    length: int | None = -1  # -1: that of the body; None: not announced
    early: bool = False  # answer before the request's body, and hang up
    trickle: bool = False  # after the body, a byte now and then until the test ends


class Scripted:
    def __init__(self, answer) -> None:
        self.asked: list[Asked] = []
        self.ending = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    super().handle_one_request()

            def do_any(self) -> None:
                asked = Asked(self.command, self.path, dict(self.headers))
                said = answer(asked)
                if said.early:
                    self.close_connection = True
                else:
                    asked.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append(asked)
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                if said.length is None:
                    self.close_connection = True
                    self.send_header("Connection", "close")
                else:
                    length = len(said.body) if said.length < 0 else said.length
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(said.body)
                while said.trickle and not outer.ending.wait(0.01):
                    self.wfile.write(b"x")
                if said.early:
                    self.wfile.flush()
                    # Take what is still coming, or the answer would be lost in a reset.
                    while self.rfile.read1(1 << 16):
                        pass

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_any

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}"

    def requests(self, method: str) -> list[Asked]:
        return [one for one in self.asked if one.method == method]


@contextlib.contextmanager
def scripted(answer):
    """Run a server whose answers `answer` gives: a function from Asked to Say."""
    running = Scripted(answer)
    thread = threading.Thread(target=running.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.ending.set()
        running.server.shutdown()
        running.server.server_close()
        thread.join()
