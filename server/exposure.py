"""Where the service may listen without knowing its callers."""

import logging
import socket
from ipaddress import ip_address

from server.settings import Settings, SettingsError, variable

_log = logging.getLogger(__name__)


def check_exposure(settings: Settings, listener: socket.socket) -> None:
    """Raise SettingsError when others than this machine could call without saying who they are."""
    host = listener.getsockname()[0]
    if ip_address(host).is_loopback or settings.insecure:
        return
    if settings.jwks is None:
        tokens = ", ".join(map(variable, ("jwks", "jwt_issuer", "jwt_audience")))
        raise SettingsError(
            f"on {host}, everybody who reaches it could change payments: set {tokens}, so that "
            f"callers need a token, or {variable('host')}=127.0.0.1. "
            f"{variable('insecure')}=1 serves all the same, where something in front sees to it"
        )
