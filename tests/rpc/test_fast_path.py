"""The gRPC fast path reads requests as the path through ASGI does, and answers them the same."""

import asyncio
import itertools
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest, UpdateOrderPaymentResponse
from tests.support import http2
from tests.support.answers import Answer, Client
from tests.support.callers import path
from tests.support.codes import OK
from tests.support.fast_path import both_ways, head, was_fast
from tests.support.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM
from tests.support.orders import Orders
from tests.support.raw import envelope
from tests.support.service import Service
from tests.support.waiting import eventually, eventually_async, lock_waits

PATH: Final = path(UpdateOrderPaymentRequest())
MISSING: Final = 10**15
LARGEST: Final = 64 * 1024  # the default of LISTINGS_MAX_REQUEST_BYTES


class Answered(NamedTuple):
    """A response without the fields that differ from call to call."""

    code: str
    headers: dict[str, str]
    trailers: dict[str, str]
    order_id: int | None


@pytest.fixture(scope="module")
def order_id(orders: Orders) -> int:
    return orders.add()


def answered(answer: Answer) -> Answered:
    headers = dict(answer.headers)
    for name in ("date", "x-request-id", "grpc-encoding"):
        headers.pop(name, None)
    order_id = None
    if answer.code == OK:
        response = UpdateOrderPaymentResponse.from_binary(answer.body[5:])
        order_id = response.order.id if response.order else None
    return Answered(answer.code, headers, answer.trailers, order_id)


def wanted(order_id: int, **values: Any) -> bytes:
    return UpdateOrderPaymentRequest(order_id=order_id, **values).to_binary()


@pytest.mark.parametrize("apart", [False, True], ids=["at-once", "apart"])
def test_a_complete_message_takes_the_fast_path(
    running: Service, order_id: int, apart: bool
) -> None:
    body = envelope(wanted(order_id, payment_status="paid"))
    chunks = [body[:3], body[3:9], b"", body[9:]] if apart else [body]
    fast, through_asgi = asyncio.run(both_ways(running, PATH, chunks, apart=apart))
    assert was_fast(fast)
    assert not was_fast(through_asgi)
    assert answered(fast) == answered(through_asgi)
    assert answered(fast).code == "ok"
    assert answered(fast).order_id == order_id


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (envelope(wanted(MISSING, payment_status="paid")), "not_found"),
        (envelope(wanted(1)), "invalid_argument"),
        (envelope(wanted(0, payment_status="x" * 99)), "invalid_argument"),
        (envelope(b"\xff\xff\xff"), "invalid_argument"),
        (envelope(b""), "invalid_argument"),
        (envelope(wanted(1, payment_status="paid")) * 2, "unimplemented"),
        (b"", "unimplemented"),
        (b"\0\0\0", "invalid_argument"),
        (envelope(b"", announced=9), "invalid_argument"),
        (envelope(b"abc", announced=1), "invalid_argument"),
        (envelope(b"x" * 70_000), "resource_exhausted"),
    ],
)
def test_invalid_bodies(running: Service, body: bytes, code: str) -> None:
    chunks = [body[n : n + 16_000] for n in range(0, len(body), 16_000)] or [b""]
    fast, through_asgi = asyncio.run(both_ways(running, PATH, chunks))
    assert answered(fast) == answered(through_asgi)
    assert answered(fast).code == code


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (b"grpc-timeout", b"soon", "invalid_argument"),
        (b"grpc-timeout", b"0n", "deadline_exceeded"),
        (b"x-request-id", b"not one", "invalid_argument"),
        (b"x-other", "ö".encode(), "invalid_argument"),
        (b"content-type", b"application/grpc+proto", "ok"),
        (b"content-type", b"application/grpc+json", "invalid_argument"),
    ],
)
def test_headers(running: Service, order_id: int, name: bytes, value: bytes, code: str) -> None:
    body = envelope(wanted(order_id, payment_status="paid"))
    fast, through_asgi = asyncio.run(both_ways(running, PATH, [body], [(name, value)]))
    assert answered(fast) == answered(through_asgi)
    assert answered(fast).code == code


def padded(request: bytes, size: int) -> bytes:
    """Return ``request`` with an unknown field that makes it ``size`` bytes long."""
    length = size - len(request) - 5  # a tag of two bytes, and a length of three
    return (
        request
        + b"\x82\x7d"
        + bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
        + bytes(length)
    )


@pytest.mark.parametrize("size", [65_531, 65_532, LARGEST])
def test_a_body_above_64_kib(running: Service, order_id: int, size: int) -> None:
    """uvicorn stops reading the connection at 65,537 bytes that an exchange does not consume."""
    body = envelope(padded(wanted(order_id, payment_status="paid"), size))
    chunks = [*(body[at : at + 16_000] for at in range(0, len(body), 16_000)), b""]
    fast, through_asgi = asyncio.run(both_ways(running, PATH, chunks, apart=True))
    assert was_fast(fast)
    assert answered(fast) == answered(through_asgi)
    assert answered(fast).code == "ok"


def test_other_calls_go_on_while_a_large_one_waits(running: Service, orders: Orders) -> None:
    held, other = orders.add(), orders.add()
    body = envelope(padded(wanted(held, payment_status="paid"), LARGEST))

    async def call() -> None:
        async with http2.connected(running) as (reader, writer):
            client = Client(reader, writer)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            client.send(http2.SETTINGS)
            block = head(PATH)
            client.send(HEADERS, END_HEADERS, 1, block)
            for at in range(0, len(body), 16_000):
                client.send(DATA, 0, 1, body[at : at + 16_000])
            client.send(DATA, END_STREAM, 1)
            await eventually_async(lambda: running.metric("listings_rpcs_in_flight") == 1)
            client.send(HEADERS, END_HEADERS, 3, block)
            client.send(DATA, END_STREAM, 3, envelope(wanted(other, payment_status="paid")))
            async with asyncio.timeout(5):
                await client.until(lambda: 3 in client.over)
            assert client.answers[3].code == OK
            assert 1 not in client.over
            client.send(RST_STREAM, 0, 1, http2.CANCEL.to_bytes(4))
            await eventually_async(lambda: running.metric("listings_rpcs_in_flight") == 0)

    with orders.locked(held):
        asyncio.run(call())


@given(
    parts=st.lists(
        st.one_of(
            st.just(envelope(wanted(MISSING, payment_status="paid"))),
            st.builds(
                lambda message, flags, announced: envelope(
                    message, flags=flags, announced=announced
                ),
                st.binary(max_size=12),
                st.sampled_from((0, 0, 0, 1, 2, 0x80)),
                st.sampled_from((None, None, 3, 2**31)),
            ),
            st.binary(max_size=8),
        ),
        min_size=1,
        max_size=2,
    ),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_arbitrary_bodies(running: Service, parts: list[bytes], cuts: list[int]) -> None:
    body = b"".join(parts)
    edges = [0, *sorted(min(each, len(body)) for each in cuts), len(body)]
    chunks = [body[start:end] for start, end in itertools.pairwise(edges)]
    fast, through_asgi = asyncio.run(both_ways(running, PATH, chunks))
    assert answered(fast) == answered(through_asgi)


@pytest.mark.parametrize("by_reset", [True, False], ids=["reset", "close"])
def test_a_call_that_is_cancelled(running: Service, orders: Orders, by_reset: bool) -> None:
    """Before the request is complete, and while its update waits for a lock."""
    held = orders.add()

    async def cancel() -> None:
        async with http2.connected(running) as (reader, writer):
            client = Client(reader, writer)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            client.send(http2.SETTINGS)
            block = head(PATH)
            for stream_id in (1, 3, 5):
                client.send(HEADERS, END_HEADERS, stream_id, block)
            body = envelope(wanted(held, payment_status="paid"))
            client.send(DATA, END_STREAM, 3, body)
            client.send(DATA, 0, 5, body)
            await eventually_async(lambda: running.metric("listings_rpcs_in_flight") == 1)
            if by_reset:
                for stream_id in (1, 3, 5):
                    client.send(RST_STREAM, 0, stream_id, http2.CANCEL.to_bytes(4))
            else:
                writer.close()
            await eventually_async(lambda: running.metric("listings_rpcs_in_flight") == 0)

    with orders.locked(held):
        asyncio.run(cancel())
        # The call is counted out before PostgreSQL has cancelled the statement.
        eventually(lambda: lock_waits(orders.url) == 0)
    assert orders.row(held)["payment_status"] == "pending"
    method = PATH.lstrip("/")
    series = {"method": method, "code": "canceled", "protocol": "grpc"}
    assert running.metric("listings_rpcs_total", **series) >= 1
