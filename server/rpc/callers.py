"""Who called: the address of the connection, or what a trusted proxy says of it.

A proxy appends the address of its client to ``Forwarded`` (RFC 7239) or to ``X-Forwarded-For``.
What stands to the left of that came with the request, and anyone can have written it. So the caller
is the rightmost address that is not a trusted proxy's; where all are, the leftmost.

The caller is the connection's own address where that is no trusted proxy's, where the field is
malformed or hides the address, and where both fields are there and name different callers: a proxy
sets one of them, and passes on what its client claims in the other.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, NamedTuple, TypeAlias

from server.addresses import canonical_address
from server.settings import Network

# RFC 7239, section 4: a token, and a token or a quoted string. A comma may stand in a quoted
# string, but in none that has an address: elements are separated at every comma.
_PAIR: Final = re.compile(
    r"""\s*([\w!#$%&'*+.^`|~-]+)=(?:([\w!#$%&'*+.^`|~-]+)|"((?:[^"\\]|\\.)*)")\s*""", re.ASCII
)

# Section 6. Ports are numbers or obfuscated. X-Forwarded-For, which has no specification, is also
# written with IPv6 addresses without brackets, which then have no port.
_NODE: Final = re.compile(
    r"(?:\[([\da-f:.]+)\]|([\d.]+))(?::(?:(\d{1,5})|_[\w.-]+))?|([\da-f:.]+)",
    re.ASCII | re.IGNORECASE,
)

_MAX_PROXIES: Final = 16  # on the way of one request
_MAX_NODE: Final = 80  # characters; an address has 45 at most

Fields: TypeAlias = Callable[[str], Sequence[str]]
"""Returns the values of a header field, in the order of the request."""


class Caller(NamedTuple):
    """The address of a caller."""

    host: str
    """As ``ipaddress`` writes it; IPv4 that is mapped into IPv6 as IPv4."""
    port: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


class TrustedProxies:
    """The proxies that are believed when they say who called them."""

    def __init__(self, networks: Collection[Network] = ()) -> None:
        self._networks = networks
        self._is_trusted = lru_cache(maxsize=1024)(self._is_in_networks)

    def caller(self, peer: str | None, fields: Fields) -> Caller | None:
        """Return who called: on a connection from ``peer``, by a request with ``fields``.

        ``peer`` is host and port as "127.0.0.1:1234", with brackets around IPv6 or without. It is
        None for a Unix socket, and the result is None then.
        """
        if not peer:
            return None
        connection = _of_connection(peer)
        if not self._networks or not self._is_trusted(connection.host):
            return connection
        claims = {
            self._of_last_proxy(nodes)
            for nodes in (_forwarded(fields("forwarded")), _x_forwarded(fields("x-forwarded-for")))
            if nodes
        }
        claim = claims.pop() if len(claims) == 1 else None
        return claim or connection

    def _of_last_proxy(self, nodes: Sequence[str]) -> Caller | None:
        """Return the rightmost of ``nodes`` that is no trusted proxy; if all are, the leftmost.

        None if a node without an address comes first, from the right.
        """
        caller = None
        for node in reversed(nodes):
            caller = parse_node(node)
            if caller is None or not self._is_trusted(caller.host):
                return caller
        return caller

    def _is_in_networks(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


@lru_cache(maxsize=1024)
def _of_connection(peer: str) -> Caller:
    # Cached, because a client makes many calls over one connection, and parsing takes 2 us.
    host, _, port = peer.rpartition(":")
    return Caller(canonical_address(host.strip("[]")) or host, port)


def parse_node(text: str) -> Caller | None:
    """Return the address in a node of ``Forwarded`` or ``X-Forwarded-For``, None without one."""
    found = _NODE.fullmatch(text) if len(text) <= _MAX_NODE else None
    if found is None:
        return None
    host = canonical_address(found[1] or found[2] or found[4])
    return Caller(host, found[3]) if host else None


def _forwarded(values: Sequence[str]) -> list[str]:
    """Return the parameter ``for`` of each element, from left to right; "" where there is none."""
    return [_for(element) for element in _elements(values)]


def _x_forwarded(values: Sequence[str]) -> list[str]:
    return [element.strip() for element in _elements(values)]


def _elements(values: Sequence[str]) -> list[str]:
    # What stands left of the last ones is not separated: it is not read as an address.
    return ",".join(values).rsplit(",", _MAX_PROXIES) if values else []


def _for(element: str) -> str:
    """Return the parameter ``for`` of an element, or "" if it is malformed or has none."""
    at, node = 0, ""
    while found := _PAIR.match(element, at):
        if found[1].lower() == "for":
            node = found[2] or re.sub(r"\\(.)", r"\1", found[3] or "")
        at = found.end()
        if at == len(element):
            return node
        if element[at] != ";":
            break
        at += 1
    return ""
