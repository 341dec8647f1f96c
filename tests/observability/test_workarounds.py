"""Canaries: faults of OpenTelemetry that ``server.observability`` works around.

Each test shows one fault of the library alone. When a test fails after an update of the library,
the workaround that it names may go: see the table in ``docs/development.md``.
"""

import inspect
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from persistence.dsn import asyncpg_dsn

pytestmark = pytest.mark.anyio


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = AsyncPGInstrumentor()  # type: ignore[no-untyped-call]
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


@pytest.fixture
async def connection(
    exporter: InMemorySpanExporter, database_url: str
) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn=asyncpg_dsn(database_url))
    yield connection
    await connection.close()


async def test_fetchmany_of_a_connection_has_no_span(
    exporter: InMemorySpanExporter, connection: asyncpg.Connection
) -> None:
    """tracing.py: _Instrumentor."""
    assert len(await connection.fetch("SELECT $1::int", 1)) == 1
    assert len(await connection.fetchmany("SELECT $1::int", [(1,), (2,)])) == 2
    assert len(exporter.get_finished_spans()) == 1


async def test_a_span_has_the_message_of_an_exception(
    exporter: InMemorySpanExporter, connection: asyncpg.Connection
) -> None:
    """tracing.py: _DiscreetTracer."""
    with pytest.raises(asyncpg.DataError):
        await connection.fetch("SELECT 'secret'::text::int")
    (span,) = exporter.get_finished_spans()
    assert "secret" in str(span.status.description)
    assert ["secret" in str(event.attributes) for event in span.events] == [True]


async def test_a_provider_stops_without_a_limit_of_time() -> None:
    """telemetry.py: a daemon thread closes the providers."""
    assert list(inspect.signature(TracerProvider.shutdown).parameters) == ["self"]
