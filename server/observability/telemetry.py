"""Traces and metrics by OpenTelemetry, where an OTLP endpoint is set.

https://opentelemetry.io/docs/specs/otel/protocol/exporter describes the variables. Without an
endpoint, nothing of OpenTelemetry is imported.

A trace begins at the caller, whose ``traceparent`` is used, and goes on to the statements in
PostgreSQL. A batch of updates has a trace of its own, linked to those of its RPCs. Statements that
belong to no RPC have no spans. Spans have the type of an exception, not its message: PostgreSQL's
errors quote keys of payments.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from server.settings import SettingsError

if TYPE_CHECKING:
    from server.observability.tracing import Telemetry

_SIGNALS: Final = ("TRACES", "METRICS")

_FLUSH_SECONDS: Final = 3.0  # for what has not been sent when the process stops


def wanted() -> dict[str, str]:
    """Return the endpoint of each signal to send, by its name: "TRACES", "METRICS".

    Raises SettingsError when a variable has a value that is not supported.
    """
    endpoints = {signal: endpoint for signal in _SIGNALS if (endpoint := _endpoint(signal))}
    if not endpoints or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return {}
    try:
        import server.observability.tracing  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(
            "an OTLP endpoint is set, and the packages that send there are not installed; install "
            'them with pip install "listings[otel]"'
        ) from error
    except Exception as error:  # an OTEL_ variable that is read on import is invalid
        raise SettingsError(f"OpenTelemetry cannot be used: {error}") from error
    return endpoints


def _endpoint(signal: str) -> str | None:
    """Return the endpoint of a signal, or None. Raises SettingsError."""
    exporter = f"OTEL_{signal}_EXPORTER"
    match os.environ.get(exporter, "otlp"):
        case "none":
            return None
        case "" | "otlp":
            pass
        case _:
            raise SettingsError(f"{exporter}: expected otlp or none")
    endpoint = None
    for name in ("OTEL_EXPORTER_OTLP", f"OTEL_EXPORTER_OTLP_{signal}"):
        endpoint = os.environ.get(f"{name}_ENDPOINT") or endpoint
        if endpoint and not _is_url(endpoint):
            raise SettingsError(f"{name}_ENDPOINT: expected http://host:4318 or https://...")
        if endpoint and os.environ.get(f"{name}_PROTOCOL") not in (None, "", "http/protobuf"):
            raise SettingsError(
                f"{name}_PROTOCOL: expected http/protobuf, for which collectors use port 4318"
            )
    return endpoint


def _is_url(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port
        return False


@asynccontextmanager
async def sending() -> AsyncIterator[Telemetry | None]:
    """Yield what sends the signals that are wanted, or None.

    At the end, the rest is sent, for 3 seconds at most. Raises SettingsError.
    """
    endpoints = wanted()
    if not endpoints:
        yield None
        return
    from server.observability.tracing import Telemetry

    sender = Telemetry(traces="TRACES" in endpoints, metrics="METRICS" in endpoints)
    try:
        yield sender
    finally:
        # Works around the shutdown of a TracerProvider, which takes no time-out: a daemon thread,
        # because the process does not wait for it when the collector does not answer.
        closing = threading.Thread(target=sender.close, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _FLUSH_SECONDS)
