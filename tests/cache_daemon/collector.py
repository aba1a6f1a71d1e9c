"""A collector: takes spans over OTLP/HTTP, as a real one does, and keeps them."""

import contextlib
import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Seen:
    name: str
    id: str
    parent: str
    trace: str
    begin: int
    end: int
    what: dict
    error: str


class Collector:
    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                assert self.path == "/v1/traces"
                collector.take(ExportTraceServiceRequest.FromString(data))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, request):
        for resource in request.resource_spans:
            self.services |= {
                one.value.string_value
                for one in resource.resource.attributes
                if one.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.spans += [_seen(one) for one in scope.spans]

    def named(self, name):
        return [one for one in self.spans if one.name == name]


def _seen(one) -> Seen:
    what = {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in one.attributes
    }
    return Seen(
        one.name, one.span_id.hex(), one.parent_span_id.hex(), one.trace_id.hex(),
        one.start_time_unix_nano, one.end_time_unix_nano, what, one.status.message,
    )  # fmt: skip


@contextlib.contextmanager
def collector():
    """Run one until the block ends."""
    running = Collector()
    thread = threading.Thread(target=running.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.server.shutdown()
        running.server.server_close()
        thread.join()
