"""Explanations for requests that never reach a method.

connectrpc answers an unknown method, HTTP method or content type with a bare 404, 405 or 415, as
the Connect specification has it, and a header or a query that is not text with the words of a
Python exception. Here each of them gets a message, in the protocol of the request. The message is
plain text where no code of Connect has the HTTP status: a client takes ``application/json`` with
any status but 200 for a Connect error.
https://connectrpc.com/docs/protocol#http-to-error-code
"""

import re
from collections.abc import Callable, Collection
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import parse_qs, unquote_to_bytes

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.observability.masking import mask_name
from server.rpc.error_encoding import (
    ENVELOPE_HEAD,
    ERROR_TRAILERS,
    HTTP_STATUS,
    EncodedError,
    RawHeaders,
    encode,
    grpc_trailers,
    send_error,
)
from server.rpc.interceptors.unread import too_large
from server.rpc.protocols import CONNECT, GRPC, GRPC_WEB, protocol_of

_EXPLANATIONS: Final = {
    404: (Code.UNIMPLEMENTED, "{path} is not a method of this server"),
    405: (Code.UNIMPLEMENTED, "{path} does not take HTTP {method}; use {allow}"),
    415: (
        Code.INVALID_ARGUMENT,
        "content type {type} is not understood; use application/json, application/proto, "
        "application/grpc or application/grpc-web, and for a stream application/connect+json or "
        "application/connect+proto instead of the first two",
    ),
}
# A content type of Connect that is for unary methods alone, and the codec in it.
_UNARY: Final = re.compile(r"application/(json|proto)(?:;.*)?")
_STREAMS: Final = "this method streams; use application/connect+{codec} in place of {type}"

# In the alphabet for URLs or, with percent-escapes, the other one, with padding or without.
_BASE64: Final = re.compile(r"(?:[\w+/-]{4})*(?:[\w+/-]{2,3}={0,2})?", re.ASCII)

_CONTENT_TYPES: Final = {GRPC: "application/grpc", GRPC_WEB: "application/grpc-web"}
_UNREADABLE_HEADER: Final = "a header cannot be read"

OnUnrouted: TypeAlias = Callable[[Scope, str, str], object]
"""Called with a request, the code that it is answered with, and the message for the log."""


class _Refusal(NamedTuple):
    status: int
    """The HTTP status, for all but gRPC and gRPC-Web."""
    code: Code
    message: str
    """For the caller."""
    masked: str | None = None
    """``message`` with what it quotes masked; None if it quotes nothing of the request."""

    @property
    def logged(self) -> str:
        """The message for the log."""
        return self.message if self.masked is None else self.masked

    @property
    def is_connect_error(self) -> bool:
        """Whether the status is that of the code."""
        return self.status == HTTP_STATUS[self.code]

    def response(self, headers: Headers) -> Response:
        """Return it for all but gRPC and gRPC-Web, with ``headers`` of the answer it replaces."""
        kept = {name: value for name, value in headers.items() if name != "content-length"}
        if not self.is_connect_error:
            return PlainTextResponse(f"{self.message}\n", self.status, kept)
        body = encode(ConnectError(self.code, self.message), CONNECT).body
        return Response(body, self.status, kept, media_type="application/json")


class UnroutedMiddleware:
    """ASGI middleware that explains what the application behind it refuses without a message."""

    def __init__(
        self,
        app: ASGIApp,
        on_unrouted: OnUnrouted,
        max_request_bytes: int,
        streaming_paths: Collection[str] = (),
    ) -> None:
        """``on_unrouted`` is called unless the request cannot have been meant as an RPC.

        ``max_request_bytes`` is the limit that connectrpc has for a message. ``streaming_paths``
        are those of the methods behind it that stream.
        """
        self._app = app
        self._streaming_paths = streaming_paths
        self._on_unrouted = on_unrouted
        self._max_request_bytes = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or explain why not; explain a refusal that comes back bare."""
        headers = Headers(scope=scope)
        protocol = protocol_of(headers.get("content-type", ""))
        refusal = None
        if not all(value.isascii() for _, value in scope["headers"]):
            refusal = _Refusal(400, Code.INVALID_ARGUMENT, "a header is not ASCII text")
        elif not _is_text(scope["query_string"]):
            text = "the query is not UTF-8; send a binary message in base64, with base64=1"
            refusal = _Refusal(400, Code.INVALID_ARGUMENT, text)
        elif not _is_base64(scope["query_string"]):
            text = 'the query has base64=1, and its message is not base64url as in "CAE"'
            refusal = _Refusal(400, Code.INVALID_ARGUMENT, text)
        elif scope["http_version"] != "2" and protocol == GRPC:
            text = "gRPC needs HTTP/2; over HTTP/1.1 there are gRPC-Web and Connect"
            refusal = _Refusal(505, Code.UNIMPLEMENTED, text)
        elif "expect" in headers and self._is_too_large(headers):
            # RFC 9110, section 10.1.1: the final answer comes before the body is sent, not 100.
            text = too_large(self._max_request_bytes)
            refusal = _Refusal(HTTP_STATUS[Code.RESOURCE_EXHAUSTED], Code.RESOURCE_EXHAUSTED, text)
        if refusal is not None:
            await self._refuse(refusal, Headers(), scope, receive, send)
            return
        is_replaced = False

        async def explain(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 200:  # most answers; of gRPC they may be errors nevertheless
                    if protocol != CONNECT and _has_grpc_status(message["headers"]):
                        self._report(scope, Code.INVALID_ARGUMENT, _UNREADABLE_HEADER)
                        if protocol == GRPC:
                            is_replaced = True
                            await _send_apart(message["headers"], send)
                elif status in _EXPLANATIONS:
                    headers = Headers(raw=message["headers"])
                    if "content-type" not in headers:
                        is_replaced = True
                        await self._explain(status, headers, scope, receive, send)
                elif status == 400:  # of a header; for one of a method the RPC has been logged
                    self._report(scope, Code.INVALID_ARGUMENT, _UNREADABLE_HEADER)
            if not is_replaced:
                await send(message)

        await self._app(scope, receive, explain)

    def _is_too_large(self, headers: Headers) -> bool:
        """Whether a body is said to be longer than a message of the largest size."""
        length = headers.get("content-length", "").lstrip("0")
        if not length.isdigit():
            return False
        limit = self._max_request_bytes + ENVELOPE_HEAD
        return len(length) > len(str(limit)) or int(length) > limit

    async def _explain(
        self, status: int, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer with a message in place of a bare ``status`` with ``headers``."""
        content_type = Headers(scope=scope).get("content-type", "")
        code, template = _EXPLANATIONS[status]
        unary = _UNARY.fullmatch(content_type)
        if unary and scope["path"] in self._streaming_paths:
            template = _STREAMS
        known = {"allow": headers.get("allow"), "codec": unary and unary[1]}
        quoted = {
            "path": scope["path"],
            "method": scope["method"],
            "type": content_type or "(none)",
        }
        masked = {name: mask_name(value) for name, value in quoted.items()}
        message, logged = (template.format(**known, **each) for each in (quoted, masked))
        refusal = _Refusal(status, code, message, logged)
        await self._refuse(refusal, headers, scope, receive, send)

    async def _refuse(
        self, refusal: _Refusal, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer with ``refusal``, in place of an answer with ``headers``."""
        content_type = Headers(scope=scope).get("content-type", "")
        protocol = protocol_of(content_type)
        has_trailers = protocol == GRPC_WEB or scope["http_version"] == "2"
        if protocol == CONNECT or scope["method"] != "POST" or not has_trailers:
            self._report(scope, refusal.code, refusal.logged)
            await refusal.response(headers)(scope, receive, send)
            return
        # gRPC has UNIMPLEMENTED for what is not a method, also for a content type.
        code = refusal.code if refusal.is_connect_error else Code.UNIMPLEMENTED
        self._report(scope, code, refusal.logged)
        trailers = grpc_trailers(ConnectError(code, refusal.message), protocol)
        if not content_type.isascii():
            content_type = _CONTENT_TYPES[protocol]
        own = [(b"content-type", content_type.encode())]
        if protocol == GRPC:
            await send_error(send, EncodedError(200, trailers=trailers), own)
        else:  # the status may stand among the headers, where there is no message before it
            await send_error(send, EncodedError(200), own + trailers)

    def _report(self, scope: Scope, code: Code, text: str) -> None:
        is_below_a_service = bool(scope["root_path"])
        if is_below_a_service or scope["method"] == "POST":
            self._on_unrouted(scope, code.value, text)


def _has_grpc_status(headers: RawHeaders) -> bool:
    """Return whether a response of gRPC or gRPC-Web is an error from before the body was read."""
    return any(name == b"grpc-status" for name, _ in headers)


async def _send_apart(headers: RawHeaders, send: Send) -> None:
    """Send an error of gRPC whose status is among ``headers`` as head and trailers.

    A status among the headers counts only where the stream ends with them. ASGI cannot express
    that; ``server.http.trailers_only`` makes one frame of both.
    """
    trailers = [pair for pair in headers if pair[0] in ERROR_TRAILERS]
    others = [pair for pair in headers if pair[0] not in ERROR_TRAILERS]
    await send_error(send, EncodedError(200, trailers=trailers), others)


def _is_text(query: bytes) -> bool:
    """Return whether a query is UTF-8; connectrpc would replace what is not."""
    try:
        query.decode()
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_base64(query: bytes) -> bool:
    """Return whether a message that is said to be base64 is; connectrpc drops what is not."""
    if b"base64" not in query:
        return True
    parameters = parse_qs(query.decode(), keep_blank_values=True)
    is_base64 = parameters.get("base64", [""])[0] == "1"
    message = parameters.get("message", [""])[0]
    return not is_base64 or bool(_BASE64.fullmatch(message))
