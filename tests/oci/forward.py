"""A forward proxy: absolute addresses for http, CONNECT for https; it may want a login."""

import base64
import contextlib
import http.client
import select
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class ForwardProxy:
    """Whatever host is asked for, `upstream` is reached: names need not exist."""

    def __init__(self, upstream: str, login: str = "") -> None:
        self.asked: list[str] = []
        outer = self
        wanted = f"Basic {base64.b64encode(login.encode()).decode()}" if login else ""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def refused(self) -> bool:
                outer.asked.append(f"{self.command} {self.path}")
                self.close_connection = True
                if self.headers.get("Proxy-Authorization", "") == wanted:
                    return False
                self.send_response(407)
                self.send_header("Proxy-Authenticate", "Basic realm=proxy")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return True

            def do_GET(self) -> None:
                if self.refused():
                    return
                connection = http.client.HTTPConnection(upstream, timeout=30)
                with contextlib.closing(connection):
                    parts = urlsplit(self.path)
                    connection.request(
                        "GET", parts.path, headers={"Accept": self.headers["Accept"] or "*/*"}
                    )
                    answer = connection.getresponse()
                    data = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.getheader("Content-Type"))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_CONNECT(self) -> None:
                if self.refused():
                    return
                host, _, port = upstream.partition(":")
                with socket.create_connection((host, int(port))) as far:
                    self.send_response(200)
                    self.end_headers()
                    self.relay(far)

            def relay(self, far: socket.socket) -> None:
                ends = {self.connection: far, far: self.connection}
                with contextlib.suppress(OSError):
                    while True:
                        for end in select.select(list(ends), [], [])[0]:
                            data = end.recv(1 << 16)
                            if not data:
                                return
                            ends[end].sendall(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"


@contextlib.contextmanager
def forward_proxy(upstream: str, login: str = ""):
    proxy = ForwardProxy(upstream, login)
    thread = threading.Thread(target=proxy.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()
