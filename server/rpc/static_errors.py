"""An error as each protocol has it, made once and sent often.

For answers that have to cost next to nothing. Those of a method are the runtime's.
"""

import base64
import json
from collections.abc import Iterable
from typing import TypeAlias
from urllib.parse import quote

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf.wkt import Any
from starlette.types import Message, Receive, Scope, Send

from server.gen.google.rpc.status_pb import Status
from server.rpc.interceptors.request_id import REQUEST_ID

# https://grpc.io/docs/guides/status-codes and https://connectrpc.com/docs/protocol#error-codes
_NUMBERS = {Code.RESOURCE_EXHAUSTED: (8, 429), Code.UNIMPLEMENTED: (12, 501)}

Headers: TypeAlias = list[tuple[bytes, bytes]]

_GRPC, _GRPC_WEB = b"application/grpc", b"application/grpc-web"
_REQUEST_ID = REQUEST_ID.encode()
_END_OF_STREAM = {"connect": 0x02, "grpc-web": 0x80}  # the flags of the last envelope


class PreparedError:
    """An ASGI application that answers every request with one error."""

    def __init__(self, error: ConnectError) -> None:
        """``error`` has one of the codes whose numbers are listed above."""
        self._grpc_code, self._http_status = _NUMBERS[error.code]
        self._trailers = self._as_trailers(error)
        self._trailers_envelope = _envelope(
            _END_OF_STREAM["grpc-web"],
            b"".join(b"%s: %s\r\n" % trailer for trailer in self._trailers),
        )
        self._json = json.dumps(_as_json(error)).encode()
        self._end_stream_envelope = _envelope(
            _END_OF_STREAM["connect"], json.dumps({"error": _as_json(error)}).encode()
        )

    def grpc_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers | None:
        """Return the one block of headers that answers a gRPC request with ``headers``.

        None if it is of another protocol.
        """
        content_type, own = _told(headers)
        return own + self._trailers if _is_grpc(content_type) else None

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer, in the protocol that the request's content type names."""
        content_type, headers = _told(scope["headers"])
        status, body = 200, b""
        trailers: Headers = []
        if _is_grpc(content_type):
            trailers = self._trailers
        elif content_type.startswith(_GRPC_WEB):
            body = self._trailers_envelope
        elif content_type.startswith(b"application/connect+"):
            body = self._end_stream_envelope
        else:
            status, body = self._http_status, self._json
            headers[0] = (b"content-type", b"application/json")
        start: Message = {
            "type": "http.response.start",
            "status": status,
            "headers": headers,
            "trailers": bool(trailers),
        }
        await send(start)
        await send({"type": "http.response.body", "body": body})
        if trailers:
            await send({"type": "http.response.trailers", "headers": trailers})

    def _as_trailers(self, error: ConnectError) -> Headers:
        # https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
        details = [
            Any(type_url=f"type.googleapis.com/{each.type_name}", value=each.message_bytes)
            for each in error.details
        ]
        status = Status(code=self._grpc_code, message=error.message, details=details)
        return [
            (b"grpc-status", b"%d" % self._grpc_code),
            (b"grpc-message", quote(error.message, safe=" ;,").encode()),
            (b"grpc-status-details-bin", _base64(status.to_binary()).encode()),
        ]


def _told(request_headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, Headers]:
    """Return the content type of a request, and the headers that its answer takes over."""
    content_type, answer = b"", [(b"content-type", b"")]
    for name, value in request_headers:
        if name == b"content-type":
            content_type = value
            answer[0] = (name, value)
        elif name == _REQUEST_ID:
            answer.append((name, value))
    return content_type, answer


def _is_grpc(content_type: bytes) -> bool:
    return content_type.startswith(_GRPC) and not content_type.startswith(_GRPC_WEB)


def _as_json(error: ConnectError) -> dict[str, object]:
    details = [
        {"type": each.type_name, "value": _base64(each.message_bytes)} for each in error.details
    ]
    return {"code": error.code.value, "message": error.message, "details": details}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _envelope(flags: int, data: bytes) -> bytes:
    return bytes([flags]) + len(data).to_bytes(4) + data
