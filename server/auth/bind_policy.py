"""Where the service may listen without knowing its callers."""

import socket
from ipaddress import ip_address

from server.settings import Settings, SettingsError, variable


def check_exposure(settings: Settings, listener: socket.socket) -> str | None:
    """Return what is to be warned of, if anything.

    Raises SettingsError when others than this machine could call without saying who they are.
    """
    host = listener.getsockname()[0]
    if ip_address(host).is_loopback:
        return None
    if settings.jwks is None and settings.tls_client_ca is None:
        if settings.insecure:
            return f"everybody who reaches {host} may do everything: {variable('insecure')} is set"
        tokens = ", ".join(map(variable, ("jwks", "jwt_issuer", "jwt_audience")))
        raise SettingsError(
            f"on {host}, everybody who reaches it could change payments. Set {tokens}, so that "
            f"callers need a token, or {variable('tls_client_ca')}, so that they need a "
            f"certificate, or {variable('host')}=127.0.0.1. {variable('insecure')}=1 serves all "
            "the same, where something in front sees to it"
        )
    if settings.tls_cert is None:
        return (
            f"tokens come to {host} in the clear, unless something in front speaks TLS; "
            f"set {variable('tls_cert')} and {variable('tls_key')}"
        )
    if settings.jwks is None:
        return f"whoever has a certificate of {settings.tls_client_ca} may do everything"
    return None
