"""One gRPC call by both ways: on the fast path, and through ASGI.

An empty grpc-encoding header sends a call through ASGI and changes nothing else.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from tests.support import http2
from tests.support.answers import Answer, Client
from tests.support.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, WINDOW_UPDATE
from tests.support.service import Service

THROUGH_ASGI: Final = (b"grpc-encoding", b"")

Headers = Sequence[tuple[bytes, bytes]]

_PADDED: Final = 0x8  # RFC 9113, section 6.1
_PADDING: Final = 7
# SETTINGS_INITIAL_WINDOW_SIZE, and what that of the connection falls short of it.
_WINDOW: Final = 2**24
_LARGE: Final = (4).to_bytes(2) + _WINDOW.to_bytes(4)
_MORE: Final = (_WINDOW - 2**16 + 1).to_bytes(4)


def head(path: str, headers: Headers = (), *more: tuple[bytes, bytes]) -> bytes:
    """Return the header block of a call, by the fast path or with ``THROUGH_ASGI``."""
    named = {b"content-type": b"application/grpc"} | dict(headers)
    return http2.header_block(path.encode(), *named.items(), *more)


def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Client:
    """Return a client that has sent its preface, with windows for large responses."""
    client = Client(reader, writer)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    client.send(SETTINGS, payload=_LARGE)
    client.send(WINDOW_UPDATE, payload=_MORE)
    return client


async def both_ways(  # noqa: PLR0913 - what there is to vary
    running: Service,
    path: str,
    chunks: Sequence[bytes],
    headers: Headers = (),
    *,
    apart: bool = False,
    padded: bool = False,
) -> tuple[Answer, Answer]:
    """Send a call in these DATA frames; return the answer of the fast path and that of ASGI.

    ``apart`` sends each frame separately, ``padded`` with padding.
    """
    async with http2.connected(running) as (reader, writer):
        client = connect(reader, writer)
        for stream_id, more in ((1, ()), (3, (THROUGH_ASGI,))):
            client.send(HEADERS, END_HEADERS, stream_id, head(path, headers, *more))
            for number, chunk in enumerate(chunks, start=1):
                if apart:
                    await writer.drain()
                    await asyncio.sleep(0.002)  # or the server reads them together
                flags = END_STREAM * (number == len(chunks)) | _PADDED * padded
                payload = bytes([_PADDING]) + chunk + bytes(_PADDING) if padded else chunk
                client.send(DATA, flags, stream_id, payload)
        async with asyncio.timeout(10):
            await client.until(lambda: client.over >= {1, 3})
        return client.answers[1], client.answers[3]


def was_fast(answer: Answer) -> bool:
    """Whether an answer came by the fast path, which names an encoding only if it uses one."""
    return answer.headers.get("grpc-encoding") != "identity"
