"""Thousands of watches that come back at once, as after a restart of the service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    WatchOrderPaymentsRequest,
    WatchOrderPaymentsResponse,
)
from tests.support import load, service, watchers
from tests.support.callers import path
from tests.support.http2 import WINDOW_UPDATE, Peer, grpc_call
from tests.support.orders import Orders
from tests.support.service import Service

pytestmark = pytest.mark.anyio

WATCHES, CONNECTIONS = 2_000, 16  # a connection has up to 128 streams at a time
STREAM_IDS = range(1, 2 * WATCHES // CONNECTIONS, 2)


def received(peer: Peer, stream_id: int) -> list[WatchOrderPaymentsResponse]:
    """Return the complete messages of a stream so far."""
    found, left = [], peer.messages.get(stream_id, b"")
    while len(left) >= 5 and len(left) - 5 >= (size := int.from_bytes(left[1:5])):
        found.append(WatchOrderPaymentsResponse.from_binary(left[5 : 5 + size]))
        left = left[5 + size :]
    return found


@asynccontextmanager
async def watching(running: Service, after: str, order_id: int) -> AsyncIterator[list[Peer]]:
    """Begin all watches at once, each of an order of its own beside ``order_id``."""
    async with AsyncExitStack() as stack:
        connected = (Peer.connected(running) for _ in range(CONNECTIONS))
        peers = [await stack.enter_async_context(each) for each in connected]
        for number, peer in enumerate(peers):
            peer.send(WINDOW_UPDATE, payload=(2**30).to_bytes(4))
            for stream_id in STREAM_IDS:
                order_ids = [order_id, 1_000_000 + number * 1_000 + stream_id]
                request = WatchOrderPaymentsRequest(order_ids=order_ids, last_event_id=after)
                grpc_call(peer, stream_id, path(request), request)
        yield peers


async def until_all_have(peers: list[Peer], count: int) -> None:
    """Read until each stream has ``count`` messages."""

    async def read(peer: Peer) -> None:
        waiting = {each for each in STREAM_IDS if len(received(peer, each)) < count}
        while waiting:
            frame = await peer.frame()
            peer.take(frame)
            if len(received(peer, frame.stream_id)) >= count:
                waiting.discard(frame.stream_id)

    await asyncio.gather(*map(read, peers))


async def test_two_thousand_watches_come_back_at_once(database_url: str, tmp_path: Path) -> None:
    """A call made meanwhile is answered, and no event is missed."""
    orders = Orders(database_url)
    order_id = orders.add()
    settings = {
        "pool_size": "2",
        "queue_size": "10",
        "max_watches_per_caller": "0",
        "statement_timeout": "60",
        "watch_heartbeat": "0",
    }
    with (
        service.running(database_url, tmp_path / "log", **settings) as running,
        watchers.grpcio(running.base_url) as watch,
        watch(WatchOrderPaymentsRequest(order_ids=[order_id])) as stream,
    ):
        position = next(stream).event_id
        assert running.stop() == 0
    orders.change(order_id, payment_status="paid")
    with service.running(database_url, tmp_path / "log 2", **settings) as running:
        async with (
            load.grpcio(running.base_url) as call,
            watching(running, position, order_id) as peers,
            asyncio.timeout(60),
        ):
            read = asyncio.create_task(call(GetOrderRequest(order_id=order_id), 20))
            await until_all_have(peers, 2)
            assert (await read).order.id == order_id
            assert running.metric("listings_watchers") == WATCHES
            orders.change(order_id, payment_status="refunded")
            await until_all_have(peers, 3)
        for peer in peers:
            assert not peer.answered
            for each in STREAM_IDS:
                begun, missed, live = received(peer, each)
                assert begun == WatchOrderPaymentsResponse(event_id=position)
                for message, status in ((missed, "paid"), (live, "refunded")):
                    assert message.event is not None
                    assert message.event.after is not None
                    assert message.event.after.payment_status == status
        assert running.metric("listings_queue_drops_total") == 0
