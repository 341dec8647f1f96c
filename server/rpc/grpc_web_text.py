"""gRPC-Web in base64, ``application/grpc-web-text``, for clients that read a response as text.

XMLHttpRequest hands over a binary response when it is complete, and a text as it arrives. Google's
grpc-web client, in its default mode ``grpcwebtext``, therefore sends and reads base64, and only so
can it read a stream. The middleware decodes requests and encodes responses; the application behind
it sees the same call in binary.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md: each side encodes what it has to send
as it goes, so that padding may follow any part of the body, and not only its end.
"""

import re
from binascii import a2b_base64, b2a_base64
from itertools import compress
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.rpc.protocols import GRPC_WEB, content_type_of, protocol_of
from server.rpc.unreadable import UnreadableRequest

_BINARY: Final = "application/grpc-web"
_TEXT: Final = "application/grpc-web-text"

# The groups of four characters, padded or not, up to the first that is wrong.
_GROUPS: Final = re.compile(rb"(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)*+")


class GrpcWebTextMiddleware:
    """ASGI middleware that decodes and encodes ``application/grpc-web-text``.

    It is to stand outside of all that answers a call, so that every error is encoded as well.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on in binary."""
        # Most requests speak other protocols: for them, only the content type is looked up.
        content_type = content_type_of(scope.get("headers", ()))
        if protocol_of(content_type) == GRPC_WEB:
            accepted = _accepted(dict(scope["headers"]).get(b"accept", b"").decode("latin-1"))
            if _is_text(content_type):
                scope, receive = _in_binary(scope), _Request(receive).receive
            if _is_text(accepted or content_type):
                send = _Response(send).send
        await self._app(scope, receive, send)


class _Request:
    """Receives the body of a request decoded, as it arrives."""

    __slots__ = ("_decoder", "_receive")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._decoder = Base64Decoder()

    async def receive(self) -> Message:
        """Raises UnreadableRequest if the body is not base64."""
        message = await self._receive()
        if message["type"] == "http.request":
            body = self._decoder.decode(message.get("body", b""))
            if not message.get("more_body"):
                self._decoder.end()
            message = {**message, "body": body}
        return message


class _Response:
    """Sends a response of gRPC-Web in base64, each part of its body padded by itself."""

    __slots__ = ("_is_encoded", "_send")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_encoded = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            content_type = headers.get("content-type", "")
            if content_type.startswith(_BINARY):
                self._is_encoded = True
                headers["content-type"] = _TEXT + content_type.removeprefix(_BINARY)
                del headers["content-length"]  # of the binary body
                message = {**message, "headers": headers.raw}
        elif self._is_encoded and message["type"] == "http.response.body":
            body = b2a_base64(message.get("body", b""), newline=False)
            message = {**message, "body": body}
        await self._send(message)


class Base64Decoder:
    """Decodes base64 in chunks of any size, with padding after any group of four characters.

    RFC 4648, section 4, and no other characters. It keeps three characters at most.
    """

    __slots__ = ("_offset", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._offset = 0  # characters before ``_rest``

    def decode(self, chunk: bytes) -> bytes:
        """Return the bytes of all groups that are complete. Raises UnreadableRequest."""
        text = self._rest + chunk
        complete = len(text) // 4 * 4
        # It matches, if only nothing.
        right = _GROUPS.match(text, 0, complete).end()  # type: ignore[union-attr]
        if right < complete:
            raise _unreadable(self._offset + right)
        self._offset += complete
        self._rest = text[complete:]
        return _decoded(text[:complete])

    def end(self) -> None:
        """Raises UnreadableRequest if the last group is incomplete."""
        if self._rest:
            raise _unreadable(self._offset)


def _decoded(groups: bytes) -> bytes:
    """Decode groups that are right.

    Without a loop over those that are padded: a request may have a hundred thousand.
    """
    if b"=" not in groups[:-2]:
        return a2b_base64(groups)
    # With zeros for the padding, three bytes a group; the first of them is of the group's first two
    # characters, and each other one is of the next character, so that padding has none.
    filled = a2b_base64(groups.replace(b"=", b"A"))
    kept = bytearray(groups.replace(b"=", b"\0"))
    del kept[::4]
    return bytes(compress(filled, kept))


def _in_binary(scope: Scope) -> Scope:
    """Return the request without what describes its body in base64: length and charset."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    media_type = headers["content-type"].partition(";")[0].rstrip()
    headers["content-type"] = _BINARY + media_type.removeprefix(_TEXT)
    del headers["content-length"]
    return {**scope, "headers": headers.raw}


def _accepted(accept: str) -> str:
    """Return the first media type of gRPC-Web that a client asks for, if any."""
    media_types = (each.strip() for each in accept.split(","))
    return next((each for each in media_types if protocol_of(each) == GRPC_WEB), "")


def _is_text(media_type: str) -> bool:
    essence = media_type.partition(";")[0].rstrip()
    return essence.partition("+")[0] == _TEXT


def _unreadable(offset: int) -> UnreadableRequest:
    text = (
        f"the request is not base64 after {offset} characters; {_TEXT} takes the alphabet of "
        f"RFC 4648, section 4, with padding, and {_BINARY}+proto takes binary"
    )
    return UnreadableRequest(text, text)
