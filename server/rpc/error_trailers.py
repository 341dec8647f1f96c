"""Errors that connectrpc has written over gRPC and gRPC-Web, as this service writes them.

Works around connectrpc. It percent-encodes characters that gRPC leaves as they are, so that clients
which do not decode a message show "%2C" for a comma. It also sends no pushback for a client's
retries.
"""

import gzip
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http import HAS_METADATA
from server.rpc.error_encoding import (
    ENVELOPE_HEAD,
    ERROR_TRAILERS,
    GRPC_WEB_TRAILERS,
    RawHeaders,
    error_in,
    grpc_trailers,
    grpc_web_trailers,
)
from server.rpc.interceptors.request_id import REQUEST_ID
from server.rpc.protocols import CONNECT, GRPC_WEB, Protocol, protocol_of

_COMPRESSED: Final = 0x01

# Headers that are no metadata of the method's, and that an error may have as trailers.
_OWN: Final = frozenset(
    name.encode()
    for name in (
        "content-type",
        "grpc-encoding",
        "grpc-accept-encoding",
        "www-authenticate",
        REQUEST_ID,
        *(each.decode() for each in ERROR_TRAILERS),
    )
)


class ErrorTrailersMiddleware:
    """ASGI middleware around an application of connectrpc."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and encode an error in its answer anew."""
        protocol = protocol_of(Headers(scope=scope).get("content-type", ""))
        if protocol == CONNECT:
            await self._app(scope, receive, send)
            return

        async def encoded(message: Message) -> None:
            if message["type"] != "http.response.body":
                headers = message["headers"] = _encoded(message["headers"], protocol)
                if message["type"] == "http.response.start":
                    message[HAS_METADATA] = any(name not in _OWN for name, _ in headers)
            elif protocol == GRPC_WEB and not message.get("more_body"):
                message["body"] = _encoded_end(message["body"])
            await send(message)

        await self._app(scope, receive, encoded)


def _encoded(headers: RawHeaders, protocol: Protocol) -> RawHeaders:
    """Return trailers, or headers that have the status, with their error encoded anew."""
    error = error_in(headers)
    if error is None:
        return headers
    others = [pair for pair in headers if pair[0] not in ERROR_TRAILERS]
    return [*others, *grpc_trailers(error, protocol)]


def _encoded_end(body: bytes) -> bytes:
    """Return the last part of a body of gRPC-Web: its trailers, or nothing."""
    if not body or not body[0] & GRPC_WEB_TRAILERS:
        return body
    lines = body[ENVELOPE_HEAD:]
    if body[0] & _COMPRESSED:
        lines = gzip.decompress(lines)
    trailers: RawHeaders = []
    for line in lines.splitlines():
        name, _, value = line.partition(b": ")
        trailers.append((name, value))
    return grpc_web_trailers(_encoded(trailers, GRPC_WEB))
