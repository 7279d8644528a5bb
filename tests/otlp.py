"""A receiver of spans (OTLP over HTTP), as a collector is one, in a thread of the test."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Receiver:
    """What it has received, by `service.name`. If it `hangs`, it takes requests and never answers."""

    hangs: bool = False
    address: str = ""
    spans: dict[str, list[Span]] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    requests: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def named(self, service: str, name: str) -> list[Span]:
        return [span for span in list(self.spans.get(service, ())) if span.name == name]

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
            found = self.spans.setdefault(attributes["service.name"], [])
            found += [span for scope in resource.scope_spans for span in scope.spans]


@contextmanager
def receiving(*, hangs: bool = False) -> Iterator[Receiver]:
    """A receiver on a port of its own, for `OTEL_EXPORTER_OTLP_ENDPOINT`."""
    receiver = Receiver(hangs)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.requests += 1
            if receiver.hangs:
                receiver.released.wait()
                return
            if self.path == "/v1/traces":
                receiver.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
