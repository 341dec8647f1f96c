"""Trailers-Only: a response of gRPC without a message is a single HEADERS frame.

gRPC clients with a retry policy send a call again only after such a response: headers in a frame of
their own end the retries.
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses
https://github.com/grpc/proposal/blob/master/A6-client-retries.md#when-retries-are-valid

Works around ASGI, in which head, body and trailers are messages of their own, and uvicorn, which
writes each of them as it comes.

The head is held without a limit of time, also that of a stream without a message yet: other servers
of gRPC send it with the first message, too, and no client waits for the head alone.

In such a response, all metadata is trailing. An application whose head has initial metadata, which
clients are to receive as such, says so by ``HAS_METADATA`` in ``http.response.start``; then head
and trailers are sent by themselves, as grpc-go's server does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import zttp

HAS_METADATA: Final = "listings.has_metadata"
"""The key in ``http.response.start`` of whether the head has initial metadata."""

_Headers: TypeAlias = list[tuple[bytes, bytes]]


def is_grpc(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a request with ``headers`` is one of gRPC.

    gRPC-Web has its trailers in the body, and other protocols do not take trailers for headers.
    """
    content_type = next((value for name, value in headers if name == b"content-type"), b"")
    return content_type.startswith(b"application/grpc") and not content_type.startswith(
        b"application/grpc-web"
    )


class TrailersOnlyStream:
    """A ``zttp.Stream`` that holds the head of a response until content or its end comes."""

    def __init__(self, stream: zttp.Stream) -> None:
        self._stream = stream
        self._head: tuple[int, _Headers] | None = None

    def send_response(self, status: int, headers: _Headers) -> None:
        """Hold the head."""
        self._head = status, headers

    def send_data(self, data: bytes) -> None:
        """Send content, after the head if that has not been sent."""
        self.send_head()
        self._stream.send_data(data)

    def send_head(self) -> None:
        """Send the head that is held, if there is one."""
        if self._head is not None:
            self._stream.send_response(*self._head)
            self._head = None

    def end_message(self, trailers: _Headers | None = None) -> None:
        """End the response; without content, by one frame with the head and the trailers."""
        if self._head is None:
            self._stream.end_message(trailers)
        else:
            status, headers = self._head
            self._head = None
            self._stream.send_response(status, [*headers, *(trailers or [])], end_stream=True)

    def __getattr__(self, name: str) -> Any:
        """Return what the other stream has."""
        return getattr(self._stream, name)
