"""HTTP requests as data, for clients that send invalid ones as well."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from urllib.parse import urlencode

from tests.support.http2 import CONTINUATION, END_HEADERS, END_STREAM, HEADERS, literals
from tests.support.raw import data, envelope, frame

Header = tuple[bytes, bytes]

_MOST_IN_A_FRAME = 16_384  # RFC 9113, section 4.2


class Request(NamedTuple):
    """One request. Its ``repr`` is enough to send it again."""

    protocol: str
    method: str
    """As ``listings.v1.OrderService/GetOrder``."""
    http: int
    """The version of HTTP that it is sent over: 1 or 2."""
    verb: bytes
    target: bytes
    headers: tuple[Header, ...]
    body: bytes

    @property
    def is_stream(self) -> bool:
        """Whether the response may be a stream without an end."""
        return self.method.endswith(("/Watch", "/WatchOrderPayments"))

    def http1(self, *more: Header) -> bytes:
        """Return it as HTTP/1.1."""
        length = (b"content-length", b"%d" % len(self.body))
        return self._head(*more, *([length] if self.body else [])) + self.body

    def chunked(self) -> bytes:
        """Return it as HTTP/1.1 with a chunked body, in two chunks."""
        half = len(self.body) // 2
        chunks = [each for each in (self.body[:half], self.body[half:]) if each]
        body = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks)
        return self._head((b"transfer-encoding", b"chunked")) + body + b"0\r\n\r\n"

    def _head(self, *more: Header) -> bytes:
        headers = ((b"host", b"localhost"), *self.headers, *more)
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        return b"%s %s HTTP/1.1\r\n%s\r\n" % (self.verb, self.target, lines)

    def http2(self, stream_id: int) -> list[bytes]:
        """Return it as frames of HTTP/2."""
        block = literals(
            (b":method", self.verb),
            (b":scheme", b"http"),
            (b":path", self.target),
            (b":authority", b"localhost"),
            *self.headers,
        )
        begun = END_STREAM if not self.body else 0
        parts = _split(block)
        frames = [
            frame(
                CONTINUATION if number else HEADERS,
                (END_HEADERS if number == len(parts) - 1 else 0) | (0 if number else begun),
                stream_id,
                part,
            )
            for number, part in enumerate(parts)
        ]
        chunks = _split(self.body) if self.body else []
        last = len(chunks) - 1
        return frames + [
            data(stream_id, chunk, END_STREAM if number == last else 0)
            for number, chunk in enumerate(chunks)
        ]


def _split(whole: bytes) -> list[bytes]:
    return [whole[at : at + _MOST_IN_A_FRAME] for at in range(0, len(whole), _MOST_IN_A_FRAME)]


@dataclass(frozen=True)
class Protocol:
    """How one protocol wraps a message, over one version of HTTP."""

    name: str
    http: int
    content_type: bytes
    is_json: bool = False
    is_enveloped: bool = False
    is_base64: bool = False
    is_get: bool = False
    encoding: bytes = b"content-encoding"
    deadline: Header = (b"connect-timeout-ms", b"20")
    """The header with a timeout, so that an endless stream ends."""

    def request(self, method: str, message: bytes, *more: Header) -> Request:
        """Return a request that is valid if ``message`` is."""
        if self.is_get:
            return self.get(method, {"message": message}, *more)
        body = envelope(message) if self.is_enveloped else message
        return self.post(method, body, *more)

    def post(self, method: str, body: bytes, *more: Header) -> Request:
        """Return a request with this body."""
        headers = ((b"content-type", self.content_type), *self._always, *more)
        body = base64.b64encode(body) if self.is_base64 else body
        return Request(self.name, method, self.http, b"POST", _path(method), headers, body)

    def get(self, method: str, query: Mapping[str, bytes | str], *more: Header) -> Request:
        """Return a request with this query, and the parameters that every query needs."""
        encoding = "json" if self.is_json else "proto"
        text = urlencode({"connect": "v1", "encoding": encoding, **query})
        target = _path(method) + b"?" + text.encode()
        return Request(self.name, method, self.http, b"GET", target, more, b"")

    @property
    def _always(self) -> tuple[Header, ...]:
        return ((b"te", b"trailers"),) if self.name == "grpc" else ()


def _path(method: str) -> bytes:
    return f"/{method}".encode()


_GRPC: Final = Protocol(
    "grpc",
    2,
    b"application/grpc",
    is_enveloped=True,
    encoding=b"grpc-encoding",
    deadline=(b"grpc-timeout", b"20m"),
)
_GRPC_WEB: Final = replace(_GRPC, name="grpc-web", http=1, content_type=b"application/grpc-web")
_GRPC_WEB_TEXT: Final = replace(
    _GRPC_WEB, name="grpc-web-text", content_type=b"application/grpc-web-text", is_base64=True
)
_BINARY: Final = Protocol("connect-binary", 2, b"application/proto")
_JSON: Final = Protocol("connect-json-http1", 1, b"application/json", is_json=True)
_GET: Final = Protocol("connect-get-json", 1, b"", is_json=True, is_get=True)
_STREAM: Final = Protocol(
    "connect-stream-binary",
    2,
    b"application/connect+proto",
    is_enveloped=True,
    encoding=b"connect-content-encoding",
)

UNARY: Final = (
    _GRPC,
    _GRPC_WEB,
    _GRPC_WEB_TEXT,
    _BINARY,
    _JSON,
    replace(_JSON, name="connect-json-http2", http=2),
    _GET,
    replace(_GET, name="connect-get-binary", http=2, is_json=False),
)
"""The protocols of a unary method."""

STREAMING: Final = (
    _GRPC,
    _GRPC_WEB,
    _GRPC_WEB_TEXT,
    _STREAM,
    replace(
        _STREAM,
        name="connect-stream-json",
        http=1,
        content_type=b"application/connect+json",
        is_json=True,
    ),
)
"""The protocols of a streaming method."""
