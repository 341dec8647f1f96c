"""A ``ConnectError`` as each protocol writes it on the wire.

All errors over gRPC and gRPC-Web are encoded here; ``server.rpc.error_trailers`` passes on those
that connectrpc has written. Over Connect, connectrpc encodes the errors of methods.
"""

import base64
import json
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from protobuf.wkt import Any
from starlette.types import Message, Send

from server.gen.google.rpc.status_pb import Status
from server.rpc.protocols import GRPC, GRPC_WEB, Protocol
from server.rpc.retries import pushback_ms
from server.rpc.status_message import decode_message, encode_message

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

HTTP_STATUS: Final = {
    Code.CANCELED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""https://connectrpc.com/docs/protocol#error-codes, in the order of gRPC's numbers."""

GRPC_STATUS: Final = {code: number for number, code in enumerate(HTTP_STATUS, start=1)}
"""https://grpc.io/docs/guides/status-codes"""

ENVELOPE_HEAD: Final = 5
"""Bytes before each message of a stream, and in gRPC and gRPC-Web: flags and length."""

# The flags of the last envelope of a stream.
_CONNECT_END_STREAM: Final = 0x02
GRPC_WEB_TRAILERS: Final = 0x80

_CODES: Final = {number: code for code, number in GRPC_STATUS.items()}

_STATUS: Final = b"grpc-status"
_MESSAGE: Final = b"grpc-message"
_DETAILS: Final = b"grpc-status-details-bin"
_PUSHBACK: Final = b"grpc-retry-pushback-ms"
ERROR_TRAILERS: Final = frozenset((_STATUS, _MESSAGE, _DETAILS, _PUSHBACK))
"""The trailers of ``grpc_trailers``."""


class EncodedError(NamedTuple):
    """An error on the wire, without the headers that differ from request to request."""

    status: int
    """The HTTP status."""
    body: bytes = b""
    trailers: Sequence[tuple[bytes, bytes]] = ()
    content_type: bytes | None = None
    """None where the error has the content type of its request."""


def encode(error: ConnectError, protocol: Protocol, *, stream: bool = False) -> EncodedError:
    """Return ``error`` in ``protocol``; ``stream`` says whether a Connect method is a stream."""
    if protocol == GRPC:
        return EncodedError(200, trailers=grpc_trailers(error))
    if protocol == GRPC_WEB:
        return EncodedError(200, grpc_web_trailers(grpc_trailers(error, GRPC_WEB)))
    if stream:
        end = json.dumps({"error": _connect_json(error)}).encode()
        return EncodedError(200, _envelope(_CONNECT_END_STREAM, end))
    body = json.dumps(_connect_json(error)).encode()
    return EncodedError(HTTP_STATUS[error.code], body, content_type=b"application/json")


def grpc_trailers(error: ConnectError, protocol: Protocol = GRPC) -> RawHeaders:
    """Return the trailers that carry ``error`` in gRPC, or in gRPC-Web."""
    number = GRPC_STATUS[error.code]
    trailers = [(_STATUS, b"%d" % number), (_MESSAGE, encode_message(error.message))]
    if error.details:
        details = [
            Any(type_url=f"type.googleapis.com/{each.type_name}", value=each.message_bytes)
            for each in error.details
        ]
        status = Status(code=number, message=error.message, details=details)
        trailers.append((_DETAILS, _base64(status.to_binary()).encode()))
    pushback = pushback_ms(error.code, error.details) if protocol == GRPC else None
    if pushback is not None:
        trailers.append((_PUSHBACK, b"%d" % pushback))
    return trailers


def as_connect_error(error: Exception) -> ConnectError:
    """Return what connectrpc makes of an exception: UNKNOWN, unless it is a ConnectError."""
    return error if isinstance(error, ConnectError) else ConnectError(Code.UNKNOWN, str(error))


def error_in(trailers: RawHeaders) -> ConnectError | None:
    """Return the error in trailers of gRPC that connectrpc has written, None if there is none."""
    fields = dict(trailers)
    number = int(fields.get(_STATUS, b"0"))
    if number == 0:
        return None
    status = Status.from_binary(base64.b64decode(fields.get(_DETAILS, b"") + b"=="))
    details = [ErrorDetail(each) for each in status.details]
    return ConnectError(_CODES[number], decode_message(fields.get(_MESSAGE, b"")), details)


def grpc_web_trailers(trailers: RawHeaders) -> bytes:
    """Return the envelope in which a body of gRPC-Web ends with ``trailers``."""
    lines = b"".join(b"%s: %s\r\n" % trailer for trailer in trailers)
    return _envelope(GRPC_WEB_TRAILERS, lines)


async def send_error(send: Send, encoded: EncodedError, headers: RawHeaders) -> None:
    """Answer an ASGI request with ``encoded``, and with ``headers`` for this request."""
    start: Message = {
        "type": "http.response.start",
        "status": encoded.status,
        "headers": headers,
        "trailers": bool(encoded.trailers),
    }
    await send(start)
    await send({"type": "http.response.body", "body": encoded.body})
    if encoded.trailers:
        await send({"type": "http.response.trailers", "headers": encoded.trailers})


def _connect_json(error: ConnectError) -> dict[str, object]:
    fields: dict[str, object] = {"code": error.code.value, "message": error.message}
    if error.details:
        fields["details"] = [
            {"type": each.type_name, "value": _base64(each.message_bytes)} for each in error.details
        ]
    return fields


def _base64(data: bytes) -> str:
    """Return ``data`` in base64 without padding, as both protocols have it."""
    return base64.b64encode(data).decode().rstrip("=")


def _envelope(flags: int, data: bytes) -> bytes:
    return bytes([flags]) + len(data).to_bytes(4) + data
