"""Clear answers to requests that never reach a method.

Connect answers an unknown method, HTTP method or content type with a bare 404, 405 or 415, as its
specification has it, and a header or a query that is not text with an exception's words. Here each
of them gets an explanation in the protocol that it speaks.
"""

import json
from collections.abc import Callable
from typing import TypeAlias
from urllib.parse import quote, unquote_to_bytes

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_UNIMPLEMENTED = b"12"  # https://grpc.io/docs/guides/status-codes

_EXPLANATIONS = {
    404: ("unimplemented", "{path} is not a method of this server"),
    405: ("unimplemented", "{path} does not take HTTP {method}; use {allow}"),
    415: (
        "invalid_argument",
        "content type {type} is not understood; use application/json, application/proto, "
        "application/grpc or application/grpc-web, and for a stream application/connect+json or "
        "application/connect+proto instead of the first two",
    ),
}

Refused: TypeAlias = Callable[[Scope, str, str], object]
"""Is told what was refused, with which code, and why."""

_RawHeaders: TypeAlias = list[tuple[bytes, bytes]]


class ExplainRefusals:
    """ASGI middleware around an application whose bare refusals want an explanation."""

    def __init__(self, app: ASGIApp, refused: Refused) -> None:
        """``refused`` is told of each refusal, unless it is certain that no RPC was meant."""
        self._app = app
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and explain a refusal that comes back without a word."""
        content_type = Headers(scope=scope).get("content-type", "")
        refusal = None
        if not all(value.isascii() for _, value in scope["headers"]):
            refusal = 400, "invalid_argument", "a header is not ASCII text"
        elif not _is_text(scope["query_string"]):
            text = "the query is not UTF-8; send a binary message in base64, with base64=1"
            refusal = 400, "invalid_argument", text
        elif scope["http_version"] != "2" and _is_grpc(content_type):
            text = "gRPC needs HTTP/2; over HTTP/1.1 there are gRPC-Web and Connect"
            refusal = 505, "unimplemented", text
        if refusal is not None:
            self._tell(scope, *refusal[1:])
            await _connect_error(*refusal)(scope, receive, send)
            return
        answered = False

        async def explain(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                if message["status"] in _EXPLANATIONS and "content-type" not in headers:
                    answered = True
                    code, text = _explanation(message["status"], headers, scope)
                    self._tell(scope, code, text)
                    refusal = message["status"], code, text
                    await _explain(refusal, headers, scope, receive, send)
                elif message["status"] == 400:  # of a header; one of a method has been seen
                    self._tell(scope, "invalid_argument", "a header cannot be read")
                elif "grpc-status" in headers and headers["content-type"] == "application/grpc":
                    self._tell(scope, "invalid_argument", "a header cannot be read")
                    answered = True
                    await _send_grpc_status(send, message["headers"])
            if not answered:
                await send(message)

        await self._app(scope, receive, explain)

    def _tell(self, scope: Scope, code: str, text: str) -> None:
        is_below_a_service = bool(scope["root_path"])
        if is_below_a_service or scope["method"] == "POST":
            self._refused(scope, code, text)


def _is_grpc(content_type: str) -> bool:
    return content_type.startswith("application/grpc") and not content_type.startswith(
        "application/grpc-web"
    )


def _is_text(query: bytes) -> bool:
    """Return whether a query is UTF-8; where it is not, the runtime would replace what it has."""
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True


def _explanation(status: int, headers: Headers, scope: Scope) -> tuple[str, str]:
    code, template = _EXPLANATIONS[status]
    return code, template.format(
        path=scope["path"],
        method=scope["method"],
        allow=headers.get("allow"),
        type=Headers(scope=scope).get("content-type") or "(none)",
    )


async def _explain(
    refusal: tuple[int, str, str], headers: Headers, scope: Scope, receive: Receive, send: Send
) -> None:
    status, code, text = refusal
    content_type = Headers(scope=scope).get("content-type", "")
    if scope["method"] != "POST" or not content_type.startswith("application/grpc"):
        await _connect_error(status, code, text, headers)(scope, receive, send)
        return
    grpc_headers = [
        (b"content-type", content_type.encode()),
        (b"grpc-status", _UNIMPLEMENTED),
        (b"grpc-message", quote(text, safe=" /:;,()").encode()),
    ]
    if content_type.startswith("application/grpc-web"):
        await send({"type": "http.response.start", "status": 200, "headers": grpc_headers})
        await send({"type": "http.response.body", "body": b""})
    else:
        await _send_grpc_status(send, grpc_headers)


async def _send_grpc_status(send: Send, headers: _RawHeaders) -> None:
    """Answer gRPC with a status and no message.

    As trailers after the headers: a status among the headers counts only where the stream ends
    with them, which an ASGI server cannot say, and grpcio would report UNKNOWN.
    """
    trailers = [pair for pair in headers if pair[0].startswith(b"grpc-")]
    others = [pair for pair in headers if pair not in trailers]
    start = {"type": "http.response.start", "status": 200, "headers": others, "trailers": True}
    await send(start)
    await send({"type": "http.response.body", "body": b""})
    await send({"type": "http.response.trailers", "headers": trailers})


def _connect_error(status: int, code: str, text: str, headers: Headers | None = None) -> Response:
    """Return an error in the form of https://connectrpc.com/docs/protocol, with ``headers``."""
    body = json.dumps({"code": code, "message": text})
    kept = {name: value for name, value in (headers or {}).items() if name != "content-length"}
    return Response(body, status, kept, media_type="application/json")
