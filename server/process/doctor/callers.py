"""How callers are known, and how they know the service: keys of tokens, and the certificate."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

from server.auth import jwks_client
from server.process.certificates import TLS
from server.process.doctor.findings import OK, PROBLEM, WARNING, Finding
from server.settings import Settings, SettingsError, variable

_RENEWAL: Final = timedelta(days=14)
"""Left of a certificate's validity at which its renewal is overdue."""


def examine_tokens(location: str | None) -> Finding:
    """Fetch the keys of tokens."""
    if location is None:
        return Finding(OK, "tokens", "not asked for: every caller may do everything")
    shown = location.partition("?")[0]  # the rest of a URL may be secret
    try:
        found = asyncio.run(jwks_client.read_once(location))
    except Exception as error:  # of a file, of a connection, or of what was there
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        text = f"no keys to check them with at {shown}: {reason}. Correct {variable('jwks')}"
        return Finding(PROBLEM, "tokens", f"{text}, or what is there")
    count = len(found.keys)
    text = "; ".join([f"{count} key{'s' if count != 1 else ''} at {shown}", *found.warnings])
    return Finding(OK if found.keys else PROBLEM, "tokens", text)


def examine_tls(settings: Settings) -> Finding:
    """Read the certificate and its key."""
    try:
        tls = TLS.from_settings(settings)
    except SettingsError as error:
        return Finding(PROBLEM, "TLS", str(error))
    if tls is None:
        return Finding(OK, "TLS", "off")
    text = f"the certificate is {tls.certificate}"
    left = tls.certificate.end - datetime.now(UTC)
    if left < _RENEWAL:
        text += f". That is in {left.days} days: it must be renewed"
        return Finding(WARNING, "TLS", text)
    return Finding(OK, "TLS", text)
