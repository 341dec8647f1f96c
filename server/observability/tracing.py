"""OpenTelemetry's parts, put together. See ``telemetry``, which imports this when it is wanted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc_otel import OpenTelemetryInterceptor
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.contextvars import bind_contextvars

# Of an RPC, in metrics. Not among them is the address of the server, which is what the caller has
# put into the header Host: each value would begin a new series.
_LABELS: Final = {"rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type"}

# The codes that are no errors of the server's span.
# https://opentelemetry.io/docs/specs/semconv/rpc/grpc/#grpc-status
_FOR_THE_CALLER: Final = frozenset(
    (
        Code.CANCELED,
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.RESOURCE_EXHAUSTED,
        Code.FAILED_PRECONDITION,
        Code.ABORTED,
        Code.OUT_OF_RANGE,
    )
)


class Telemetry:
    """Sends traces and metrics from threads of its own, until it is closed."""

    def __init__(self, *, traces: bool, metrics: bool) -> None:
        os.environ.setdefault("OTEL_SERVICE_NAME", "listings")
        self._opened: list[TracerProvider | MeterProvider] = []
        self.interceptor = OpenTelemetryInterceptor(
            # Baggage is of no use here, and each part of it that is malformed would be logged.
            propagator=TraceContextTextMapPropagator(),
            tracer_provider=self._traces() if traces else trace.NoOpTracerProvider(),
            meter_provider=self._metrics() if metrics else NoOpMeterProvider(),
        )

    @staticmethod
    def bind_trace_id(_request: object) -> None:
        """Have entries of the log tell the current trace, up to the end of the RPC."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            bind_contextvars(trace_id=trace.format_trace_id(context.trace_id))

    def close(self) -> None:
        """Send what is left, and stop."""
        for provider in self._opened:
            provider.shutdown()

    def _traces(self) -> trace.TracerProvider:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.sampler = _Calls(provider.sampler)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._opened.append(provider)
        discreet = _DiscreetTracerProvider(provider)
        instrumentor = AsyncPGInstrumentor()  # type: ignore[no-untyped-call]
        instrumentor.instrument(tracer_provider=discreet)
        return discreet

    def _metrics(self) -> MeterProvider:
        provider = MeterProvider(
            [PeriodicExportingMetricReader(OTLPMetricExporter())],
            shutdown_on_exit=False,
            views=[View(instrument_name="rpc.server.call.duration", attribute_keys=_LABELS)],
        )
        self._opened.append(provider)
        return provider


class _Calls(Sampler):
    """Leaves out statements that belong to no RPC, as those by which the database is watched."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        *args: Any,
        **options: Any,
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        if kind is SpanKind.CLIENT and not parent.is_valid:
            return SamplingResult(Decision.DROP)
        return self._sampler.should_sample(parent_context, trace_id, name, kind, *args, **options)

    def get_description(self) -> str:
        return f"Calls({self._sampler.get_description()})"


class _DiscreetTracerProvider(trace.TracerProvider):
    def __init__(self, provider: trace.TracerProvider) -> None:
        self._provider = provider

    def get_tracer(self, *args: Any, **options: Any) -> trace.Tracer:
        return _DiscreetTracer(self._provider.get_tracer(*args, **options))


class _DiscreetTracer(trace.Tracer):
    """Tells of an exception that a span failed, and nothing of what it says."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start_span(self, *args: Any, **options: Any) -> Span:
        return self._tracer.start_span(*args, **options)

    @contextmanager
    def start_as_current_span(  # type: ignore[override] # its decorator is private there
        self, *args: Any, **options: Any
    ) -> Iterator[Span]:
        silent = {"record_exception": False, "set_status_on_exception": False}
        with self._tracer.start_as_current_span(*args, **options | silent) as span:
            try:
                yield span
            except Exception as error:
                if not (isinstance(error, ConnectError) and error.code in _FOR_THE_CALLER):
                    span.set_attribute("error.type", type(error).__qualname__)
                    span.set_status(Status(StatusCode.ERROR))
                raise
