"""An error that is encoded once for each protocol, and sent often.

For answers that have to cost next to nothing.
"""

from collections.abc import Iterable
from typing import Final

from connectrpc.errors import ConnectError
from starlette.types import Receive, Scope, Send

from server.rpc.error_encoding import EncodedError, RawHeaders, encode, send_error
from server.rpc.interceptors.request_id import REQUEST_ID
from server.rpc.protocols import CONNECT, GRPC, GRPC_WEB, is_connect_stream, protocol_of

_REQUEST_ID: Final = REQUEST_ID.encode()


class StaticError:
    """An ASGI application that answers every request with one error."""

    def __init__(self, error: ConnectError) -> None:
        self._connect_stream = encode(error, CONNECT, stream=True)
        self._encoded = {each: encode(error, each) for each in (CONNECT, GRPC, GRPC_WEB)}

    def trailers_only(self, request_headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
        """Return the block of headers that is the whole answer to a gRPC request.

        The Trailers-Only response of
        https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses.
        """
        content_type, request_id = _echoed(request_headers)
        encoded = self._encoded[GRPC]
        return [(b"content-type", content_type), *request_id, *encoded.trailers]

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer in the protocol of the request."""
        content_type, request_id = _echoed(scope["headers"])
        encoded = self._encoded_for(content_type.decode("latin-1"), scope["http_version"])
        headers = [(b"content-type", encoded.content_type or content_type), *request_id]
        await send_error(send, encoded, headers)

    def _encoded_for(self, content_type: str, http_version: str) -> EncodedError:
        if is_connect_stream(content_type):
            return self._connect_stream
        protocol = protocol_of(content_type)
        # gRPC needs the trailers of HTTP/2. Over HTTP/1.1, a gRPC request gets Connect's answer.
        return self._encoded[CONNECT if protocol == GRPC and http_version != "2" else protocol]


def _echoed(request_headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, RawHeaders]:
    """Return the content type of a request and the header of its id, which the answer repeats."""
    content_type, request_id = b"", []
    for name, value in request_headers:
        if name == b"content-type":
            content_type = content_type or value  # the first one, as ``content_type_of`` has it
        elif name == _REQUEST_ID:
            request_id.append((name, value))
    return content_type, request_id
