"""The hosts that a request may name where callers need no authentication.

A browser takes the name in a page's URL for its origin. The owner of the name can point it to a
loopback address once the page is loaded (DNS rebinding): the page then calls the service as its own
origin, and CORS does not apply. Each request still has that name, in Host or in :authority (RFC
9110, section 7.2), and is refused for it.
"""

import re
from collections.abc import Iterable
from typing import Final

from server.addresses import canonical_address, is_loopback

# RFC 3986, section 3.2.2, without user information, which these fields do not have. An address in
# brackets, or a name or an IPv4 address; a port of any number.
_AUTHORITY: Final = re.compile(r"(?:\[([\da-f:.]+)\]|([\w.-]+))(?::\d{0,5})?", re.ASCII)

_MAX_LENGTH: Final = 1024  # bytes of a field that is examined; a name has 253 at most
_MAX_KNOWN: Final = 1024  # fields that are remembered


class HostPolicy:
    """Decides by the header fields of a request whether it names a host of this machine."""

    def __init__(self, names: Iterable[str]) -> None:
        """Allow localhost, loopback addresses and ``names``: names or addresses without a port.

        A name does not allow its subdomains.
        """
        self._names = {"localhost", *map(_canonical, names)}
        self._allowed: set[bytes] = set()

    def allows(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether each Host among ``headers`` is allowed, with any port.

        For HTTP/2, zttp gives :authority as Host. A request without one is allowed, as by HTTP/1.0:
        no browser sends it.
        """
        return all(self._is_allowed(value) for name, value in headers if name == b"host")

    def _is_allowed(self, field: bytes) -> bool:
        if field in self._allowed:
            return True
        if len(field) > _MAX_LENGTH:
            return False
        # grpcio names all addresses of a target such as ipv4:127.0.0.1:8080,127.0.0.1:8081.
        authorities = field.decode("latin-1").lower().split(",")
        is_allowed = field == b"" or all(map(self._is_local, authorities))
        if is_allowed:
            if len(self._allowed) == _MAX_KNOWN:
                self._allowed.clear()
            self._allowed.add(field)
        return is_allowed

    def _is_local(self, authority: str) -> bool:
        found = _AUTHORITY.fullmatch(authority)
        if found is None:
            return False
        host = _canonical(found[1] or found[2])
        return host in self._names or is_loopback(host)


def _canonical(host: str) -> str:
    """Return a canonical address, or a name in lower case without its final dot."""
    host = host.lower().strip("[]").removesuffix(".")
    return canonical_address(host) or host
