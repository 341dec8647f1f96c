"""One call of any method over each protocol, without generated code; returns its status code."""

import base64
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from connectrpc.code import Code
from pyqwest import HTTPVersion, SyncClient, SyncHTTPTransport

OK: Final = "ok"

GRPC_CODES: Final = {
    number: code.value
    for number, code in enumerate(
        (
            *(Code.CANCELED, Code.UNKNOWN, Code.INVALID_ARGUMENT, Code.DEADLINE_EXCEEDED),
            *(Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.PERMISSION_DENIED),
            *(Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION, Code.ABORTED),
            *(Code.OUT_OF_RANGE, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE),
            *(Code.DATA_LOSS, Code.UNAUTHENTICATED),
        ),
        start=1,
    )
}
"""https://grpc.io/docs/guides/status-codes"""


class Called(NamedTuple):
    """A method's path, and a request message in both encodings."""

    path: str
    binary: bytes
    json: str
    streams: bool


Ask = Callable[[str, Called, Mapping[str, str]], str]
"""Calls at a base URL with some headers, and returns the code, "ok" if there is an answer."""

_http1: Final = SyncClient(SyncHTTPTransport(http_version=HTTPVersion.HTTP1))
_http2: Final = SyncClient(SyncHTTPTransport(http_version=HTTPVersion.HTTP2))


def grpc(base_url: str, called: Called, headers: Mapping[str, str]) -> str:
    """Over gRPC: the code is in the trailers, or there is a message."""
    kind = {"content-type": "application/grpc", "te": "trailers"}
    with _post(_http2, base_url, called, {**kind, **headers}, _envelope(called)) as response:
        if next(_chunks(response), None) is not None:
            return OK
        status = response.trailers.get("grpc-status") or response.headers.get("grpc-status")
    return _grpc_code(status)


def grpc_web(base_url: str, called: Called, headers: Mapping[str, str]) -> str:
    """Over gRPC-Web: the code is in the last envelope, or among the headers."""
    kind = {"content-type": "application/grpc-web+proto"}
    with _post(_http1, base_url, called, {**kind, **headers}, _envelope(called)) as response:
        if (status := response.headers.get("grpc-status")) is not None:
            return _grpc_code(status)
        first = next(_chunks(response))
    if not first[0] & 0x80:
        return OK
    trailers = dict(line.split(": ", 1) for line in first[5:].decode().split("\r\n") if line)
    return _grpc_code(trailers["grpc-status"])


def connect_binary(base_url: str, called: Called, headers: Mapping[str, str]) -> str:
    """Over Connect, in Protocol Buffers."""
    return _connect(base_url, called, headers, "proto", called.binary)


def connect_json(base_url: str, called: Called, headers: Mapping[str, str]) -> str:
    """Over Connect, in JSON."""
    return _connect(base_url, called, headers, "json", called.json.encode())


def connect_get(base_url: str, called: Called, headers: Mapping[str, str]) -> str:
    """Over Connect by GET."""
    message = base64.urlsafe_b64encode(called.binary).decode()
    query = [("connect", "v1"), ("encoding", "proto"), ("base64", "1"), ("message", message)]
    response = _http1.get(base_url + called.path, dict(headers), params=query)
    is_stream = response.headers.get("content-type", "").startswith("application/connect+")
    return _connect_code(response.status, bytes(response.content), is_stream=is_stream)


ASK: Final[Mapping[str, Ask]] = {
    "grpc": grpc,
    "grpc-web": grpc_web,
    "connect": connect_binary,
    "json": connect_json,
    "get": connect_get,
}


def _connect(
    base_url: str, called: Called, headers: Mapping[str, str], codec: str, message: bytes
) -> str:
    kind, body = f"application/{codec}", message
    if called.streams:
        kind, body = f"application/connect+{codec}", struct.pack(">BI", 0, len(message)) + message
    sent = {"content-type": kind, **headers}
    with _post(_http1, base_url, called, sent, body) as response:
        # The first chunk of a stream is enough: it may not end.
        content = next(_chunks(response), b"") if called.streams else b"".join(_chunks(response))
        return _connect_code(response.status, content, is_stream=called.streams)


def _connect_code(status: int, content: bytes, *, is_stream: bool) -> str:
    """Return the code of the error; the HTTP status where the content is no Connect error."""
    if status != 200:
        try:
            return str(json.loads(content)["code"])
        except ValueError:
            return f"http {status}"
    if is_stream and content[0] & 0x02:  # its end
        return str(json.loads(content[5:]).get("error", {}).get("code", OK))
    return OK


def _post(
    client: SyncClient, base_url: str, called: Called, headers: Mapping[str, str], body: bytes
) -> Any:
    return client.stream("POST", base_url + called.path, dict(headers), body)


def _chunks(response: Any) -> Iterator[bytes]:
    return (bytes(chunk) for chunk in response.content if chunk)


def _envelope(called: Called) -> bytes:
    return struct.pack(">BI", 0, len(called.binary)) + called.binary


def _grpc_code(status: str | None) -> str:
    assert status is not None, "there is neither a message nor a status"
    return OK if status == "0" else GRPC_CODES[int(status)]
