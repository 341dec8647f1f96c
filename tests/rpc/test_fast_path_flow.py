"""Responses that a client does not read cost no more on the fast path than through ASGI."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import pytest

from server.gen.listings.v1.orders_connect import OrderService, OrderServiceASGIApplication
from server.gen.listings.v1.orders_pb import GetOrderRequest, GetOrderResponse, Order
from server.http import Limits, Server
from server.http.h2 import H2Protocol
from server.http.h2_flow import ENHANCE_YOUR_CALM
from server.rpc.binary_codec import BinaryCodec
from server.rpc.fast_path import create_fast_path
from server.rpc.load_shedding import LoadShedder
from tests.support.callers import path
from tests.support.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    WINDOW_UPDATE,
    Peer,
    RecordedConnections,
    header_block,
    run,
    running,
    until,
)
from tests.support.raw import envelope

REQUEST: Final = GetOrderRequest(order_id=1)
BODY: Final = envelope(REQUEST.to_binary())
HEAD: Final = header_block(path(REQUEST).encode(), (b"content-type", b"application/grpc"))

SIZE: Final = 200_000
RESPONSE: Final = GetOrderResponse(order=Order(order_number="x" * SIZE))
SMALL: Final = 2  # the id of a small order
MAX_CONCURRENT_STREAMS: Final = 128  # zttp's

_INITIAL_WINDOW: Final = (4).to_bytes(2)  # of SETTINGS
NO_WINDOW: Final = _INITIAL_WINDOW + bytes(4)
LARGEST_WINDOW: Final = _INITIAL_WINDOW + (2**31 - 1).to_bytes(4)


class LargeOrders(OrderService):
    """Every order but one is large."""

    async def get_order(self, request: GetOrderRequest, _ctx: object) -> GetOrderResponse:
        return GetOrderResponse() if request.order_id == SMALL else RESPONSE


class Orders(NamedTuple):
    port: int
    server: Server
    connections: RecordedConnections

    @property
    def connection(self) -> H2Protocol:
        """The only connection so far."""
        (reference,) = self.connections.http2
        connection = reference()
        assert connection is not None
        return connection

    @property
    def kept(self) -> int:
        """How many bytes of responses the connection has waiting."""
        connection = self.connection
        exchanges = [*connection.cycles.values(), *connection.unread.values()]
        unsent = {each.stream.stream_id: each.stream.pending_bytes or 0 for each in exchanges}
        return sum(unsent.values()) + connection.transport.get_write_buffer_size()


@pytest.fixture(params=[True, False], ids=["fast", "asgi"])
def is_fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@asynccontextmanager
async def serving(is_fast: bool, **limits: Any) -> AsyncIterator[Orders]:
    application = OrderServiceASGIApplication(LargeOrders(), codecs=[BinaryCodec()])
    fast_path = create_fast_path(application, LoadShedder(10_000, 0), 1_000)
    server = Server(
        application,
        limits=Limits(check_interval=0.1, **limits),
        answer=fast_path if is_fast else None,
        drain_timeout=10,
    )
    server.server_state.connections = connections = RecordedConnections()
    async with running(server) as port:
        yield Orders(port, server, connections)


def call(peer: Peer, stream_id: int, body: bytes = BODY) -> None:
    peer.send(HEADERS, END_HEADERS, stream_id, HEAD)
    peer.send(DATA, END_STREAM, stream_id, body)


def open_window(peer: Peer, stream_id: int, size: int) -> None:
    peer.send(WINDOW_UPDATE, 0, stream_id, size.to_bytes(4))


@pytest.mark.parametrize("window", [NO_WINDOW, LARGEST_WINDOW], ids=["window", "socket"])
def test_what_a_connection_keeps_is_bounded(is_fast: bool, window: bytes) -> None:
    """By the streams that may be open, whether the client closes a window or does not read."""
    calls, at_once = 4 * MAX_CONCURRENT_STREAMS, MAX_CONCURRENT_STREAMS // 2

    async def test() -> None:
        async with serving(is_fast) as served, Peer.connected(served, window) as peer:
            if window == LARGEST_WINDOW:
                open_window(peer, 0, 2**31 - 2**16)
            most_kept, most_open = 0, 0
            for number in range(calls):
                call(peer, 2 * number + 1)
                if number % at_once == at_once - 1:
                    await peer.writer.drain()
                    await asyncio.sleep(0.1)  # in which all of them could be answered
                    most_kept = max(most_kept, served.kept)
                    most_open = max(most_open, len(served.connection.cycles))
            assert most_open == MAX_CONCURRENT_STREAMS
            assert most_kept < (MAX_CONCURRENT_STREAMS + 1) * (SIZE + 1_000)
            peer.writer.transport.abort()
            await until(lambda: not served.connections and not served.server.server_state.tasks)

    run(test())


def test_a_response_that_is_not_read_resets_its_stream_only(is_fast: bool) -> None:
    async def test() -> None:
        async with (
            serving(is_fast, response_stall_timeout=0.3) as served,
            Peer.connected(served) as peer,
        ):
            call(peer, 1)  # takes the connection's window, too
            async with asyncio.timeout(5):
                await peer.until(lambda: 1 in peer.resets)
            assert peer.resets == {1: ENHANCE_YOUR_CALM}  # gRPC's RESOURCE_EXHAUSTED
            assert 1 not in peer.answered
            open_window(peer, 0, SIZE)
            call(peer, 3, envelope(GetOrderRequest(order_id=SMALL).to_binary()))
            await peer.until(lambda: 3 in peer.answered)
            assert peer.goaways == []
            assert served.connection.cycles == served.connection.unread == {}

    run(test())


def test_a_client_that_reads_slowly_gets_the_whole_response(is_fast: bool) -> None:
    """Later than the timeout, since some of it is read in between. A drain waits for it."""

    async def test() -> None:
        async with (
            serving(is_fast, response_stall_timeout=0.4) as served,
            Peer.connected(served) as peer,
        ):
            call(peer, 1)
            await peer.until(lambda: len(peer.messages.get(1, b"")) > 60_000)
            served.server.should_exit = True
            while 1 not in peer.answered:
                open_window(peer, 0, 20_000)
                open_window(peer, 1, 20_000)
                peer.take(await peer.frame())
                await asyncio.sleep(0.1)
            assert peer.messages[1] == envelope(RESPONSE.to_binary())
            assert peer.resets == {}

    run(test())


def test_a_client_that_resets_a_stream_frees_it(is_fast: bool) -> None:
    async def test() -> None:
        async with serving(is_fast) as served, Peer.connected(served, NO_WINDOW) as peer:
            call(peer, 1)
            await until(lambda: bool(served.connections.http2) and served.kept > SIZE)
            peer.reset(1)
            await until(lambda: not served.server.server_state.tasks)
            assert served.connection.cycles == served.connection.unread == {}

    run(test())
