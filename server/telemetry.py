"""Traces and metrics by OpenTelemetry, where an OTLP endpoint is set.

https://opentelemetry.io/docs/specs/otel/protocol/exporter tells of the variables. Without one of
``ENDPOINTS`` nothing of OpenTelemetry is even imported.

A trace begins at the caller, whose ``traceparent`` is taken up, and goes on to the statements in
PostgreSQL. What the service asks of the database on its own account is no part of one. Spans have
the kind of an exception, not its text: PostgreSQL's errors quote keys of payments.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from server.settings import SettingsError

if TYPE_CHECKING:
    from connectrpc.interceptor import Interceptor
    from structlog.typing import Processor

_ALL: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_METRICS: Final = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"

ENDPOINTS: Final = (_ALL, _TRACES, _METRICS)

_PROTOCOLS: Final = (
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
)

_FLUSH = 3.0  # seconds for what is left to leave, when the process stops


def is_wanted() -> bool:
    """Return whether an endpoint is set. Raises SettingsError, if it cannot be served."""
    given = [name for name in ENDPOINTS if os.environ.get(name)]
    if not given or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    for name in _PROTOCOLS:
        if os.environ.get(name, "http/protobuf") not in ("", "http/protobuf"):
            raise SettingsError(f"{name}: only http/protobuf is supported, usually on port 4318")
    try:
        import server.tracing  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{given[0]} is set, and the packages that send there are not installed; install them "
            'with pip install "listings[otel]"'
        ) from error
    return True


def log_processors() -> Sequence[Processor]:
    """Return what adds the id of the trace to entries of the log, if there are traces."""
    if not is_wanted():
        return ()
    from server.tracing import add_trace_id

    return (add_trace_id,)


@asynccontextmanager
async def telemetry() -> AsyncIterator[Sequence[Interceptor]]:
    """Send what is wanted meanwhile; yield the interceptors that see to it, none or one.

    At the end, what is left is sent, unless that takes too long.
    """
    if not is_wanted():
        yield ()
        return
    from server.tracing import Telemetry

    sent_to = os.environ.get
    sending = Telemetry(
        traces=bool(sent_to(_ALL) or sent_to(_TRACES)),
        metrics=bool(sent_to(_ALL) or sent_to(_METRICS)),
    )
    try:
        yield (sending.interceptor,)
    finally:
        # A thread that is not waited for when the process ends: nobody may be listening any more.
        closing = threading.Thread(target=sending.close, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _FLUSH)
