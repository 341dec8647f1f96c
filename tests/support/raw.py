"""Bytes on a socket, for what HTTP clients do not send."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.support.http2 import (
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    SETTINGS,
    Frame,
    header_block,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + bytes([SETTINGS]) + bytes(5)


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    """Return one frame of HTTP/2."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream_id.to_bytes(4) + payload


def head(stream_id: int, path: str, content_type: bytes = b"application/grpc") -> bytes:
    """Return the HEADERS frame of a call."""
    block = header_block(path.encode(), (b"content-type", content_type))
    return frame(HEADERS, END_HEADERS, stream_id, block)


def envelope(message: bytes, *, flags: int = 0, announced: int | None = None) -> bytes:
    """Return a gRPC message; with ``announced``, its prefix has that length."""
    return bytes([flags]) + (announced or len(message)).to_bytes(4) + message


def data(stream_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Return a DATA frame."""
    return frame(DATA, flags, stream_id, payload)


def http1(path: str, *headers: str) -> bytes:
    """Return the header section of a POST in JSON over HTTP/1.1."""
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@contextmanager
def connected(port: int, seconds: float = 30) -> Iterator[socket.socket]:
    """Connect to a service on this machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        yield connection


def push(connection: socket.socket, chunk: bytes, times: int) -> int:
    """Send a chunk ``times`` times, or until the server closes. Returns how often it was sent."""
    sent = 0
    with suppress(ConnectionError):
        while sent < times:
            connection.sendall(chunk)
            sent += 1
    return sent


def rest(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    received = bytearray()
    with suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
    return bytes(received)


def frames(received: bytes) -> Iterator[Frame]:
    """Yield the complete frames in what an HTTP/2 server has sent."""
    while len(received) >= 9:
        end = 9 + int.from_bytes(received[:3])
        if len(received) < end:
            return
        kind, flags = received[3:5]
        yield Frame(kind, flags, int.from_bytes(received[5:9]), received[9:end])
        received = received[end:]


def goaway_codes(received: bytes) -> list[int]:
    """Return the error codes of all GOAWAYs among the frames."""
    return [int.from_bytes(each.payload[4:8]) for each in frames(received) if each.kind == GOAWAY]
