"""Sends requests, or any bytes, and returns the code of each response."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from tests.support import answers
from tests.support.answers import OPEN, Client
from tests.support.http2 import ACK, PING, SETTINGS, WINDOW_UPDATE, connected
from tests.support.raw import PREFACE, frame, frames
from tests.support.requests import Request
from tests.support.service import Service

RESET: Final = "reset"
ENDED: Final = "ended"
WAITING: Final = "no answer"
INCOMPLETE: Final = "answered in part"
ANSWERED: Final = "answered PING"
"""Outcomes without a code. "answered in part": the response ended before its code."""

_PATIENCE: Final = 20.0  # seconds for an answer
_WATCHED: Final = 0.05  # seconds without a message after which a stream is cancelled

_MOST_IN_WINDOW = 60_000  # bytes of bodies on a connection, within 65,535: RFC 9113, section 6.9.2
_WIDE_OPEN: Final = (
    PREFACE
    + frame(SETTINGS, payload=b"\0\4" + (2**31 - 1).to_bytes(4))
    + frame(WINDOW_UPDATE, payload=(2**31 - 1 - 65_535).to_bytes(4))
)


async def send(service: Service, requests: Sequence[Request]) -> list[str]:
    """Return the code of each answer."""
    found: dict[int, str] = {}

    async def over_http1(number: int, request: Request) -> None:
        found[number] = await _over_http1(service, request)

    async def over_http2(numbers: Sequence[int]) -> None:
        codes = await _over_http2(service, [requests[number] for number in numbers])
        found.update(zip(numbers, codes, strict=True))

    async with asyncio.TaskGroup() as group:
        for number, request in enumerate(requests):
            if request.http == 1:
                group.create_task(over_http1(number, request))
        for numbers in _by_connection(requests):
            group.create_task(over_http2(numbers))
    return [found[number] for number in range(len(requests))]


def _by_connection(requests: Sequence[Request]) -> Iterator[list[int]]:
    """Group requests by connection, so that their bodies fit into its flow-control window."""
    numbers: list[int] = []
    size = 0
    for number, request in enumerate(requests):
        if request.http == 2:
            if numbers and size + len(request.body) > _MOST_IN_WINDOW:
                yield numbers
                numbers, size = [], 0
            numbers.append(number)
            size += len(request.body)
    if numbers:
        yield numbers


async def _over_http1(service: Service, request: Request) -> str:
    async with connected(service) as (reader, writer):
        writer.write(request.http1((b"connection", b"close")))
        quiet = _WATCHED if request.is_stream else _PATIENCE
        received, ended = await receive(reader, _PATIENCE, quiet)
    found = [answer.code for answer in answers.http1(received)]
    if not found:
        return ENDED if ended else WAITING
    return INCOMPLETE if ended and found[0] == OPEN else found[0]


async def _over_http2(service: Service, requests: Sequence[Request]) -> list[str]:
    streams = {2 * number + 1: request for number, request in enumerate(requests)}
    finite = {stream_id for stream_id, request in streams.items() if not request.is_stream}
    async with connected(service) as (reader, writer):
        client = Client(reader, writer)
        writer.write(_WIDE_OPEN)
        for stream_id, request in streams.items():
            writer.write(b"".join(request.http2(stream_id)))

        def all_begun() -> bool:
            begun = client.over | client.answers.keys()
            return finite <= client.over and streams.keys() <= begun

        def all_over() -> bool:
            return streams.keys() <= client.over

        ended = not (
            await client.waits(_PATIENCE, all_begun) and await client.waits(_WATCHED, all_over)
        )

    def code(stream_id: int) -> str:
        if stream_id in client.resets:
            return RESET
        if stream_id not in client.answers:
            return ENDED if ended else WAITING
        found = client.answers[stream_id].code
        return INCOMPLETE if stream_id in client.answered and found == OPEN else found

    return [code(stream_id) for stream_id in streams]


async def receive(reader: asyncio.StreamReader, first: float, others: float) -> tuple[bytes, bool]:
    """Return the bytes received, and whether the server closed the connection.

    Waits ``first`` seconds for the first byte, and ``others`` seconds after each chunk.
    """
    received = bytearray()
    try:
        while True:
            async with asyncio.timeout(others if received else first):
                chunk = await reader.read(65_536)
            if not chunk:
                return bytes(received), True
            received += chunk
    except TimeoutError:
        return bytes(received), False
    except ConnectionError:
        return bytes(received), True


def codes(received: bytes, client: Client) -> list[str]:
    """Return the codes in received bytes of HTTP/1.1 or HTTP/2."""
    if received.startswith(b"HTTP/"):
        return [answer.code for answer in answers.http1(received)]
    pings = []
    for each in frames(received):
        client.take(each)
        if each.kind == PING and each.flags & ACK:
            pings = [ANSWERED]
    by_stream = [answer.code for answer in client.answers.values()]
    return by_stream + [RESET] * len(client.resets) + [ENDED] * len(client.goaways) + pings
