"""A collector of OpenTelemetry, to which a service sends its traces and metrics."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.callers import PATH

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""The variable that turns telemetry on."""

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN: Final = "b7ad6b7169203331"
"""A span of the caller, within ``TRACE``."""

SPAN_OF_AN_UPDATE: Final = PATH.lstrip("/")
ERROR: Final = 2  # https://opentelemetry.io/docs/specs/otel/trace/api/#set-status


@dataclass
class Collector:
    """The exports received so far."""

    endpoint: str = ""
    bodies: list[tuple[str, bytes]] = field(default_factory=list)

    def spans(self, name: str | None = None) -> list[Any]:
        """Return the spans of that name, or all."""
        return [
            span
            for request in self._parsed("/v1/traces", ExportTraceServiceRequest)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if name in (None, span.name)
        ]

    def metrics(self) -> dict[str, list[Any]]:
        """Return the data points of each histogram's last export, by its name."""
        return {
            metric.name: list(metric.histogram.data_points)
            for request in self._parsed("/v1/metrics", ExportMetricsServiceRequest)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def services(self) -> set[str]:
        """Return the service names in the resources of the exports."""
        return {
            attribute.value.string_value
            for request in self._parsed("/v1/traces", ExportTraceServiceRequest)
            for resource in request.resource_spans
            for attribute in resource.resource.attributes
            if attribute.key == "service.name"
        }

    def _parsed(self, path: str, kind: Any) -> list[Any]:
        return [kind.FromString(body) for at, body in self.bodies if at == path]


@contextmanager
def collecting() -> Iterator[Collector]:
    """Collect on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.bodies.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def attributes(span: Any) -> dict[str, str]:
    """Return the attributes of a span that are text."""
    return {each.key: each.value.string_value for each in span.attributes}
