"""Whether the collector of telemetry can be reached."""

import socket
from typing import Final
from urllib.parse import urlsplit

from server.observability import telemetry
from server.process.doctor.findings import OK, PROBLEM, Finding
from server.settings import SettingsError

_CONNECT_SECONDS: Final = 2.0


def examine_telemetry() -> Finding:
    """Try to connect to each collector."""
    try:
        endpoints = set(telemetry.wanted().values())
    except SettingsError as error:
        return Finding(PROBLEM, "telemetry", str(error))
    for endpoint in sorted(endpoints):
        parts = urlsplit(endpoint)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        try:
            socket.create_connection((parts.hostname or "", port), _CONNECT_SECONDS).close()
        except OSError as error:
            text = f"no collector at {parts.hostname} port {port}: {error}. Start a collector"
            return Finding(PROBLEM, "telemetry", f"{text} there, or correct the endpoint")
    return Finding(OK, "telemetry", "sent by OTLP" if endpoints else "off")
