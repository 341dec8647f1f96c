"""Every error that comes before a message is one HEADERS frame over gRPC, wherever it is made.

gRPC clients send a call again after no other answer:
https://github.com/grpc/proposal/blob/master/A6-client-retries.md#when-retries-are-valid
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import psycopg

from server.gen.grpc_health.v1.health_pb import HealthCheckRequest
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
    WatchOrderPaymentsResponse,
)
from server.rpc.retries import NEVER, RETRIES
from tests.support import service
from tests.support.answers import Recorder
from tests.support.callers import PATH, path
from tests.support.fast_path import THROUGH_ASGI
from tests.support.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, header_block
from tests.support.orders import Orders
from tests.support.raw import envelope
from tests.support.service import Service
from tests.support.waiting import eventually_async, lock_waits

GRPC: Final = (b"content-type", b"application/grpc")
JSON: Final = (b"content-type", b"application/grpc+json")
GZIP: Final = (b"grpc-encoding", b"gzip")
AT_ONCE: Final = (b"grpc-timeout", b"0n")

GET: Final = path(GetOrderRequest())
WATCH: Final = path(WatchOrderPaymentsRequest())
CHECK: Final = "/grpc.health.v1.Health/Check"
REFLECTION: Final = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

MISSING: Final = 10**15
UPDATE: Final = envelope(
    UpdateOrderPaymentRequest(order_id=MISSING, payment_status="paid").to_binary()
)
READ: Final = envelope(GetOrderRequest(order_id=MISSING).to_binary())
OTHER_POSITION: Final = envelope(WatchOrderPaymentsRequest(last_event_id="x").to_binary())
TOO_LARGE: Final = b"\0" + (10**6).to_bytes(4)


class Call(NamedTuple):
    """A call that fails, and the code it fails with."""

    path: str
    body: bytes
    code: str
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def block(self) -> bytes:
        headers = dict([GRPC, *self.headers])
        return header_block(self.path.encode(), *headers.items())


CALLS: Final = (
    # A handler
    Call(PATH, UPDATE, "not_found"),
    Call(PATH, UPDATE, "not_found", (THROUGH_ASGI,)),
    Call(GET, READ, "not_found"),
    Call(GET, READ, "not_found", (THROUGH_ASGI,)),
    Call(CHECK, envelope(HealthCheckRequest(service="x").to_binary()), "not_found"),
    # An interceptor
    Call(PATH, envelope(b""), "invalid_argument"),
    Call(PATH, envelope(b""), "invalid_argument", (THROUGH_ASGI,)),
    Call(GET, envelope(b""), "invalid_argument"),
    Call(PATH, UPDATE, "invalid_argument", ((b"x-request-id", b"not one"),)),
    Call(GET, READ, "invalid_argument", ((b"x-request-id", b"not one"),)),
    # A request that cannot be read
    Call(PATH, envelope(b"\xff"), "invalid_argument"),
    Call(PATH, envelope(b"{"), "invalid_argument", (JSON,)),
    Call(PATH, b"\0\0", "invalid_argument"),
    Call(PATH, b"", "unimplemented"),
    Call(PATH, UPDATE * 2, "unimplemented"),
    Call(PATH, TOO_LARGE, "resource_exhausted"),
    Call(GET, TOO_LARGE, "resource_exhausted"),
    Call(PATH, envelope(b"", flags=1), "internal"),
    Call(PATH, envelope(b"", flags=1), "invalid_argument", (GZIP,)),
    Call(PATH, UPDATE, "unimplemented", ((b"grpc-encoding", b"br"),)),
    # A time that has passed
    Call(PATH, UPDATE, "deadline_exceeded", (AT_ONCE,)),
    Call(PATH, UPDATE, "deadline_exceeded", (AT_ONCE, THROUGH_ASGI)),
    Call(WATCH, envelope(b""), "deadline_exceeded", (AT_ONCE,)),
    # No method
    Call("/listings.v1.OrderService/Nope", UPDATE, "unimplemented"),
    Call("/listings.v1.Nope/GetOrder", UPDATE, "unimplemented"),
    Call("/", UPDATE, "unimplemented"),
    Call(PATH, UPDATE, "unimplemented", ((b"content-type", b"application/grpc+thrift"),)),
    Call(PATH, UPDATE, "invalid_argument", ((b"grpc-timeout", b"soon"),)),
    Call(PATH, UPDATE, "invalid_argument", ((b"x-other", b"\xff"),)),
    # A stream, before its first message
    Call(WATCH, OTHER_POSITION, "invalid_argument"),
    Call(WATCH, b"", "unimplemented"),
    Call(WATCH, envelope(b"\xff"), "invalid_argument"),
    Call(WATCH, TOO_LARGE, "resource_exhausted"),
    Call(REFLECTION, envelope(b"\xff"), "invalid_argument"),
    Call(REFLECTION, envelope(b"{"), "invalid_argument", (JSON,)),
)


async def check(served: Service, calls: Iterable[Call]) -> None:
    """Make calls on one connection, and check what they are answered with."""
    by_stream = {2 * number + 1: call for number, call in enumerate(calls)}
    async with Recorder.connected(served) as client:
        for stream_id, call in by_stream.items():
            client.send(HEADERS, END_HEADERS, stream_id, call.block)
            client.send(DATA, END_STREAM, stream_id, call.body)
        async with asyncio.timeout(10):
            await client.until(lambda: client.over >= by_stream.keys())
        for stream_id, call in by_stream.items():
            check_answer(client, stream_id, call)


def check_answer(client: Recorder, stream_id: int, call: Call) -> None:
    kinds = [(each.kind, each.flags) for each in client.frames[stream_id]]
    assert kinds == [(HEADERS, END_HEADERS | END_STREAM)], call
    answer = client.answers[stream_id]
    assert (answer.status, answer.code) == (200, call.code), call
    assert answer.headers["grpc-message"], call
    pushback = answer.headers.get("grpc-retry-pushback-ms")
    assert (pushback is not None) == (call.code in RETRIED), call


RETRIED: Final = {retry.code.value for retry in RETRIES.values()}


def test_each_error(running: Service) -> None:
    asyncio.run(check(running, CALLS))


def test_calls_without_a_token(guarded: Service) -> None:
    asyncio.run(
        check(
            guarded,
            [
                Call(PATH, UPDATE, "unauthenticated"),
                Call(PATH, UPDATE, "unauthenticated", (THROUGH_ASGI,)),
                Call(GET, READ, "unauthenticated"),
                Call(WATCH, envelope(b""), "unauthenticated"),
                Call(CHECK, envelope(b""), "unauthenticated"),
                Call(REFLECTION, envelope(b""), "unauthenticated"),
            ],
        )
    )


def test_calls_that_are_rejected_for_overload(database_url: str, tmp_path: Path) -> None:
    """Whether the service is full when the headers come, or only when the message does."""
    orders = Orders(database_url)
    order_id = orders.add()
    waiting = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid").to_binary()
    update = Call(PATH, UPDATE, "resource_exhausted")
    calls = [
        update,
        update._replace(headers=(THROUGH_ASGI,)),
        Call(GET, READ, "resource_exhausted"),
    ]

    async def test(running: Service) -> None:
        async with Recorder.connected(running) as client:
            client.send(HEADERS, END_HEADERS, 1, update.block)
            client.send(HEADERS, END_HEADERS, 3, update.block)
            client.send(DATA, END_STREAM, 3, envelope(waiting))
            await eventually_async(lambda: lock_waits(database_url) == 1)
            await check(running, calls)
            client.send(DATA, END_STREAM, 1, UPDATE)
            async with asyncio.timeout(10):
                await client.until(lambda: 1 in client.over)
            check_answer(client, 1, update)

    settings = {"pool_size": "1", "queue_size": "0", "statement_timeout": "60"}
    with (
        service.running(database_url, tmp_path / "log", **settings) as running,
        orders.locked(order_id),
    ):
        asyncio.run(test(running))


def test_calls_while_the_database_is_locked(database_url: str, tmp_path: Path) -> None:
    """Errors that may pass: a read is sent again, an update without a key is not."""

    async def test(running: Service) -> None:
        calls = [
            Call(PATH, UPDATE, "deadline_exceeded"),
            Call(PATH, UPDATE, "deadline_exceeded", (THROUGH_ASGI,)),
            Call(GET, READ, "deadline_exceeded"),
        ]
        async with Recorder.connected(running) as client:
            for number, call in enumerate(calls):
                client.send(HEADERS, END_HEADERS, 2 * number + 1, call.block)
                client.send(DATA, END_STREAM, 2 * number + 1, call.body)
            async with asyncio.timeout(10):
                await client.until(lambda: client.over >= {1, 3, 5})
            for number, call in enumerate(calls):
                check_answer(client, 2 * number + 1, call)
            found = [client.answers[each].headers["grpc-retry-pushback-ms"] for each in (1, 3, 5)]
            assert found == [str(NEVER), str(NEVER), "1000"]

    with (
        service.running(database_url, tmp_path / "log", statement_timeout="0.2") as running,
        psycopg.connect(database_url) as holder,
    ):
        holder.execute("LOCK TABLE orders")
        asyncio.run(test(running))
        holder.rollback()


def test_the_head_of_an_idle_watch_comes_at_once(channel: grpc.Channel) -> None:
    """With the first message, which every watch begins with; no client waits for an event."""
    watch = channel.unary_stream(
        WATCH,
        request_serializer=WatchOrderPaymentsRequest.to_binary,
        response_deserializer=WatchOrderPaymentsResponse.from_binary,
    )
    stream = watch(WatchOrderPaymentsRequest(order_ids=[MISSING]), timeout=10)
    metadata = dict(stream.initial_metadata())
    assert "x-request-id" in metadata
    assert not next(stream).has_field("event")
    stream.cancel()
