"""Who can reach the service where callers need no authentication: this machine alone.

The service then listens on loopback addresses, and answers only requests that name a host of
``server.auth.host_policy``.
"""

import socket

from server.addresses import is_loopback
from server.settings import Settings, SettingsError, variable


def is_local_only(settings: Settings) -> bool:
    """Return whether only this machine is served, because nothing says who calls.

    With ``insecure``, other machines are served, too: a proxy in front authenticates callers.
    """
    return settings.jwks is None and settings.tls_client_ca is None and not settings.insecure


def check_bind_policy(settings: Settings, listener: socket.socket) -> str | None:
    """Return a warning about the address of ``listener``, or None.

    Raises SettingsError if other machines can reach it and only this one is to be served.
    """
    host = listener.getsockname()[0]
    if is_loopback(host):
        return None
    if is_local_only(settings):
        tokens = ", ".join(map(variable, ("jwks", "jwt_issuer", "jwt_audience")))
        raise SettingsError(
            f"without authentication, every client that reaches {host} could change payments. Set "
            f"{tokens} to require a token, or {variable('tls_client_ca')} to require a client "
            f"certificate, or {variable('host')}=127.0.0.1. {variable('insecure')}=1 serves "
            "without authentication, for a proxy in front that authenticates"
        )
    if settings.jwks is None and settings.tls_client_ca is None:
        return (
            f"no authentication: every client that reaches {host} may call every method, "
            f"because {variable('insecure')} is set"
        )
    if settings.tls_cert is None:
        return (
            f"tokens are sent to {host} in cleartext unless a proxy in front terminates TLS; "
            f"set {variable('tls_cert')} and {variable('tls_key')}"
        )
    if settings.jwks is None:
        return f"every client certificate of {settings.tls_client_ca} may call every method"
    return None
