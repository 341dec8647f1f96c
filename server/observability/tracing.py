"""OpenTelemetry's parts, wired together; ``telemetry`` imports this where an endpoint is set."""

import contextvars
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from typing import Any, Final

import asyncpg
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
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes
from structlog.contextvars import bind_contextvars

from server.observability.masking import mask_look_alikes

_SERVER_ADDRESS: Final = "server.address"

# Attributes of an RPC in metrics. The address of the server is left out: it is the caller's header
# Host, of which each value would make a new series.
_LABELS: Final = {"rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type"}

# Codes with which the span of a server is no error.
# https://opentelemetry.io/docs/specs/semconv/rpc/grpc/#grpc-status
_CALLER_CODES: Final = frozenset(
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
        tracer_provider = self._traces() if traces else trace.NoOpTracerProvider()
        self._tracer = tracer_provider.get_tracer("listings")
        self.interceptor = OpenTelemetryInterceptor(
            # Baggage is not used here, and each malformed part of it would be logged.
            propagator=TraceContextTextMapPropagator(),
            tracer_provider=tracer_provider,
            meter_provider=self._metrics() if metrics else NoOpMeterProvider(),
        )

    @staticmethod
    def bind_trace_id(_request: object) -> None:
        """Add the id of the current trace to log entries, up to the end of the RPC."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            bind_contextvars(trace_id=trace.format_trace_id(context.trace_id))

    def batch_span(self, callers: Sequence[contextvars.Context]) -> AbstractContextManager[object]:
        """Return the span of a batch of updates, to be entered while the batch runs.

        It begins a trace of its own, and is linked to the spans that are current in the contexts of
        ``callers``: a span has one parent, and a batch has several callers.
        https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/#batch-receiving
        """
        spans = [caller.run(trace.get_current_span).get_span_context() for caller in callers]
        return self._tracer.start_as_current_span(
            "BATCH UPDATE",
            attributes={
                "db.system.name": "postgresql",
                "db.operation.name": "BATCH UPDATE",
                "db.operation.batch.size": len(callers),
            },
            links=[Link(span) for span in spans if span.is_valid],
        )

    def close(self) -> None:
        """Send what has not been sent yet, and stop."""
        for provider in self._opened:
            provider.shutdown()

    def _traces(self) -> trace.TracerProvider:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.sampler = _CallSampler(provider.sampler)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._opened.append(provider)
        discreet = _DiscreetTracerProvider(provider)
        instrumentor = _Instrumentor()  # type: ignore[no-untyped-call]
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


class _Instrumentor(AsyncPGInstrumentor):
    """Works around AsyncPGInstrumentor, which leaves out ``fetchmany`` of a connection."""

    def _instrument(self, **options: Any) -> None:
        super()._instrument(**options)  # type: ignore[no-untyped-call]
        original = asyncpg.Connection.fetchmany

        @wraps(original)
        async def fetchmany(connection: object, *args: object, **options: object) -> object:
            call = partial(original, connection)
            return await self._do_execute(call, connection, args, options)  # type: ignore[no-untyped-call]

        asyncpg.Connection.fetchmany = fetchmany


class _CallSampler(Sampler):
    """Samples what belongs to an RPC.

    A statement without a parent is left out, as those of the health probe. A batch is sampled when
    one of its RPCs is: by a sampling ratio, few would have both.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(  # noqa: PLR0913 PLR0917 - as in the base class
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        if kind is SpanKind.CLIENT and not parent.is_valid:
            return SamplingResult(Decision.DROP)
        if links:
            sampled = any(link.context.trace_flags.sampled for link in links)
            decision = Decision.RECORD_AND_SAMPLE if sampled else Decision.DROP
            return SamplingResult(decision, attributes)
        return self._sampler.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        return f"CallSampler({self._sampler.get_description()})"


class _DiscreetTracerProvider(trace.TracerProvider):
    """Makes tracers that leave out the messages of exceptions."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._provider = provider

    def get_tracer(self, *args: Any, **options: Any) -> trace.Tracer:
        return _DiscreetTracer(self._provider.get_tracer(*args, **options))


class _DiscreetTracer(trace.Tracer):
    """Marks spans as failed with the type of an exception, and leaves out its message.

    Masks the address of the server, which is what the caller sent as Host. Works around
    instrumentations, none of which has an option for that.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start_span(self, *args: Any, **options: Any) -> Span:
        return self._tracer.start_span(*args, **options)

    @contextmanager
    def start_as_current_span(  # type: ignore[override] # its decorator is private there
        self, *args: Any, **options: Any
    ) -> Iterator[Span]:
        silent = {"record_exception": False, "set_status_on_exception": False}
        if host := (options.get("attributes") or {}).get(_SERVER_ADDRESS):
            named = options["attributes"] | {_SERVER_ADDRESS: mask_look_alikes(host)}
            options = options | {"attributes": named}
        with self._tracer.start_as_current_span(*args, **options | silent) as span:
            try:
                yield span
            except Exception as error:
                if not (isinstance(error, ConnectError) and error.code in _CALLER_CODES):
                    span.set_attribute("error.type", type(error).__qualname__)
                    span.set_status(Status(StatusCode.ERROR))
                raise
