"""An update that waits for a lock, and is cancelled or late, is not made when the lock is free.

Over every protocol, by every way to cancel, alone and in a batch: see ``docs/api.md``.
"""

import asyncio
import socket
import struct
from asyncio import StreamWriter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Final

import pytest

from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support import exchange, history, http2, service
from tests.support.callers import PATH
from tests.support.http2 import CANCEL, RST_STREAM
from tests.support.orders import Orders
from tests.support.raw import PREFACE, frame
from tests.support.requests import UNARY, Header, Protocol, Request
from tests.support.service import Service
from tests.support.waiting import eventually, eventually_async, lock_waits

_POSTED: Final = {each.name: each for each in UNARY if not each.is_get}
PROTOCOLS: Final = (
    *_POSTED.values(),
    replace(_POSTED["grpc-web"], http=2),
    replace(_POSTED["connect-binary"], http=1),
)

SOON: Final = 4  # seconds within which a cancel reaches PostgreSQL, on a machine under load


def reset_stream(writer: StreamWriter) -> None:
    writer.write(frame(RST_STREAM, 0, 1, CANCEL.to_bytes(4)))


def reset_connection(writer: StreamWriter) -> None:
    at_once = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    writer.transport.abort()


def close_connection(writer: StreamWriter) -> None:
    writer.close()


def close_for_sending(writer: StreamWriter) -> None:
    writer.write_eof()


Cancel = Callable[[StreamWriter], None]
Groups = Sequence[Sequence[Protocol]]


@pytest.fixture(scope="module", params=["on", "off"], ids=["fast_path", "asgi"])
def fast_path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def running(fast_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("cancelled") / "log"
    settings = {"grpc_fast_path": fast_path, "statement_timeout": str(10 * SOON)}
    with service.on_own_database(log, **settings) as running:
        yield running


@pytest.fixture
def orders(running: Service) -> Orders:
    return Orders(running.database_url)


@pytest.fixture(params=["alone", "in a batch"])
def groups(request: pytest.FixtureRequest, fast_path: str) -> Groups:
    """The protocols whose updates are made at the same time.

    Of many, the first ones take all slots, and the others form a batch. PostgreSQL rolls it back
    because it would have to wait for a lock; each of its statements is then executed by itself.
    """
    protocols = [each for each in PROTOCOLS if fast_path == "on" or each.name == "grpc"]
    if request.param == "alone":
        return [[each] for each in protocols]
    return [protocols * (1 if len(protocols) > 1 else 8)]


def requested(protocol: Protocol, order_id: int, *headers: Header) -> Request:
    """Return an update of that order."""
    update = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
    message = update.to_json().encode() if protocol.is_json else update.to_binary()
    return protocol.request(PATH[1:], message, *headers)


def assert_not_made(orders: Orders, order_ids: Sequence[int]) -> None:
    """Check that nothing is being executed, and that no order has been changed."""
    eventually(
        lambda: (
            orders.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' AND state <> 'idle'"
                " AND pid <> pg_backend_pid()"
            )
            == 0
        )
    )
    assert {each["order_id"] for each in history.events(orders.url)} & set(order_ids) == set()


@pytest.mark.parametrize(
    "cancel", [reset_stream, reset_connection, close_connection, close_for_sending]
)
def test_a_cancelled_update_is_not_made(
    running: Service, orders: Orders, groups: Groups, cancel: Cancel
) -> None:
    async def begin_and_cancel(requests: Sequence[Request]) -> None:
        async with AsyncExitStack() as stack:
            writers = []
            for each in requests:
                _, writer = await stack.enter_async_context(http2.connected(running))
                over_http2 = each.http == 2
                writer.write(PREFACE + b"".join(each.http2(1)) if over_http2 else each.http1())
                writers.append(writer)
            await eventually_async(lambda: lock_waits(orders.url) == len(requests))
            for writer in writers:
                cancel(writer)
            await eventually_async(lambda: lock_waits(orders.url) == 0, seconds=SOON)

    for group in groups:
        protocols = [each for each in group if each.http == 2 or cancel is not reset_stream]
        order_ids = [orders.add() for _ in protocols]
        with orders.locked(*order_ids):
            asyncio.run(begin_and_cancel(list(map(requested, protocols, order_ids))))
        assert_not_made(orders, order_ids)


def test_a_late_update_is_not_made(running: Service, orders: Orders, groups: Groups) -> None:
    for group in groups:
        order_ids = [orders.add() for _ in group]
        requests = [
            requested(protocol, order_id, (protocol.deadline[0], value))
            for protocol, order_id in zip(group, order_ids, strict=True)
            for value in [protocol.deadline[1].replace(b"20", b"100")]
        ]
        with orders.locked(*order_ids):
            assert set(asyncio.run(exchange.send(running, requests))) == {"deadline_exceeded"}
            eventually(lambda: lock_waits(orders.url) == 0, seconds=SOON)
        assert_not_made(orders, order_ids)
