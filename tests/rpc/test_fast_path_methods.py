"""Every unary method answers the same on the gRPC fast path and through ASGI.

The methods are those of the descriptor. A new one needs an entry in ``VALID`` for each field that
it requires, and nothing else.
"""

import asyncio
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from protobuf import Message, Oneof
from protobuf.wkt import Duration

from server.gen.listings.v1.orders_connect import OrderService
from server.gen.listings.v1.orders_pb import (
    ListOrdersRequest,
    ListOrdersResponse,
    UpdateOrderPaymentRequest,
)
from tests.support import http2
from tests.support.answers import Answer
from tests.support.callers import CALLERS, Failure
from tests.support.fast_path import THROUGH_ASGI, both_ways, connect, head, was_fast
from tests.support.http2 import DATA, END_HEADERS, END_STREAM, HEADERS
from tests.support.orders import Orders
from tests.support.raw import envelope
from tests.support.service import Service
from tests.support.tokens import READ, WRITE, Issuer, bearer
from tests.support.waiting import eventually, eventually_async

SERVICE: Final = OrderService.desc()
METHODS: Final = {each.name: each for each in SERVICE.methods if each.method_kind == "unary"}
KEY: Final = "fast-path-methods"

# Values of fields, by name, for the methods that have them.
VALID: Final[dict[str, Any]] = {
    "payment_status": "paid",
    "payment_idempotency_key": KEY,
    "older_than": Duration(),
    "reference": Oneof("payment_idempotency_key", KEY),
}
UNKNOWN: Final = VALID | {
    "order_id": 10**15,
    "reference": Oneof("payment_session_id", "none such"),
}
INVALID: Final = VALID | {"order_id": -1, "page_size": -1, "reference": None}

GZIP: Final = (b"grpc-accept-encoding", b"gzip")
# Of that header: the encoding of the answer.
ACCEPTED: Final = {
    b"gzip": "gzip",
    b"br, gzip": "gzip",
    b"identity,gzip": "identity",
    b"": "identity",
}

# What differs between two calls that are logged alike.
_OWN_FIELDS: Final = ("timestamp", "duration_ms", "caller")


class Same(NamedTuple):
    """All of an answer that both ways have in common."""

    code: str
    headers: dict[str, str]
    trailers: dict[str, str]
    body: bytes


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def order_id(running: Service, orders: Orders) -> int:
    """An order that has its payment already: an update of it is a replay, and changes nothing.

    It has refused an event. There is another order whose payment is stuck.
    """
    paid, stuck = orders.add(), orders.add()
    with CALLERS["grpcio"](running.base_url) as call:
        call(message("UpdateOrderPayment", VALID | {"order_id": paid}))
        call(
            UpdateOrderPaymentRequest(
                order_id=stuck,
                payment_status="pending",
                payment_provider="stripe",
                payment_session_id="cs_fast_path_methods",
            )
        )
        with pytest.raises(Failure):
            call(UpdateOrderPaymentRequest(order_id=paid, payment_status="pending"))
    return paid


@pytest.fixture(scope="module")
def large_page(orders: Orders) -> ListOrdersRequest:
    """A request whose response is larger than the flow-control windows of HTTP/2."""
    storefront_id = 987_654_321
    orders.add(storefront_id=storefront_id)
    columns = "buyer_id, storefront_id, currency, subtotal_amount, shipping_amount, tax_amount,"
    columns += " discount_amount, total_amount"
    orders.value(
        f"WITH added AS (INSERT INTO orders (order_number, {columns})"
        f" SELECT 'FP-' || n, {columns} FROM orders, generate_series(2, 1000) AS n"
        f" WHERE storefront_id = {storefront_id} RETURNING id) SELECT count(*) FROM added"
    )
    return ListOrdersRequest(storefront_id=storefront_id, page_size=1000)


def path(method: str) -> str:
    return f"/{SERVICE.type_name}/{method}"


def message(method: str, values: dict[str, Any]) -> Message[Any]:
    kind = METHODS[method].input.type
    return kind(**{name: values[name] for name in values.keys() & set(kind.__slots__)})


def body(method: str, values: dict[str, Any]) -> bytes:
    return envelope(message(method, values).to_binary())


def same(answer: Answer) -> Same:
    own = {"date", "x-request-id", "grpc-encoding"}
    headers = {name: value for name, value in answer.headers.items() if name not in own}
    return Same(answer.code, headers, answer.trailers, answer.body)


def uncompressed(answer: Answer) -> Answer:
    """Return an answer with its message as it was: gzip adds the time to what it compresses."""
    content = answer.body[5:]
    plain = envelope(gzip.decompress(content) if answer.body[0] else content)
    return replace(answer, body=plain)


def compared(running: Service, method: str, chunks: list[bytes], *headers: Any, **how: Any) -> Same:
    """Return the answer of both ways, which must be the same."""
    fast, through_asgi = asyncio.run(both_ways(running, path(method), chunks, headers, **how))
    assert was_fast(fast)
    assert not was_fast(through_asgi)
    assert same(fast) == same(through_asgi)
    return same(fast)


def test_the_fast_path_is_of_unary_methods() -> None:
    assert len(METHODS) > 1
    assert {each.name for each in SERVICE.methods} - METHODS.keys() == {"WatchOrderPayments"}


def test_a_call(running: Service, order_id: int, method: str) -> None:
    """With its log entry, its request id and its metrics."""
    request_id = f"both-{method}"
    series = {"method": path(method)[1:], "code": "ok", "protocol": "grpc"}
    before = running.metric("listings_rpcs_total", **series)
    fast, through_asgi = asyncio.run(
        both_ways(
            running,
            path(method),
            [body(method, VALID | {"order_id": order_id})],
            [(b"x-request-id", request_id.encode())],
        )
    )
    assert was_fast(fast)
    assert not was_fast(through_asgi)
    assert same(fast) == same(through_asgi)
    assert fast.code == "ok"
    assert len(fast.body) > 5
    for answer in (fast, through_asgi):
        assert answer.headers["x-request-id"] == request_id
    eventually(lambda: len(running.logged(event="rpc", request_id=request_id)) == 2)
    first, second = (
        {name: value for name, value in entry.items() if name not in _OWN_FIELDS}
        for entry in running.logged(event="rpc", request_id=request_id)
    )
    assert first == second
    assert running.metric("listings_rpcs_total", **series) == before + 2


def test_a_request_in_several_padded_frames(running: Service, order_id: int, method: str) -> None:
    whole = body(method, VALID | {"order_id": order_id})
    chunks = [whole[:3], b"", whole[3:7], whole[7:]]
    answer = compared(running, method, chunks, apart=True, padded=True)
    assert answer.code == "ok"


def test_errors_and_their_details(running: Service, method: str) -> None:
    for values in (UNKNOWN, INVALID):
        answer = compared(running, method, [body(method, values)])
        assert (answer.code == "ok") == (answer.body != b"")
        if values is INVALID:
            assert answer.code == "invalid_argument"
            assert "grpc-status-details-bin" in answer.headers | answer.trailers
    assert compared(running, method, [envelope(b"\xff")]).code == "invalid_argument"


@pytest.mark.parametrize("token", ["none", "other", "right"])
def test_permissions(guarded: Service, issuer: Issuer, method: str, token: str) -> None:
    writes = method == "UpdateOrderPayment"
    permissions = {"other": READ if writes else WRITE, "right": WRITE if writes else READ}
    headers = bearer(issuer.token(permissions[token])) if token in permissions else {}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    answer = compared(guarded, method, [body(method, UNKNOWN)], *raw)
    expected = {"none": {"unauthenticated"}, "other": {"permission_denied"}}
    assert answer.code in expected.get(token, {"ok", "not_found"})


@contextmanager
def locked(orders: Orders) -> Iterator[None]:
    """Lock the tables, so that every method waits."""
    with psycopg.connect(orders.url) as holder:
        holder.execute("LOCK TABLE orders, order_payment_events, refused_payment_events")
        yield
        holder.rollback()


def test_deadlines(running: Service, orders: Orders, order_id: int, method: str) -> None:
    with locked(orders):
        whole = body(method, VALID | {"order_id": order_id})
        answer = compared(running, method, [whole], (b"grpc-timeout", b"150m"))
    assert answer.code == "deadline_exceeded"


def test_calls_that_are_cancelled(
    running: Service, orders: Orders, order_id: int, method: str
) -> None:
    series = {"method": path(method)[1:], "code": "canceled", "protocol": "grpc"}
    before = running.metric("listings_rpcs_total", **series)
    whole = body(method, VALID | {"order_id": order_id})

    async def cancel() -> None:
        async with http2.connected(running) as (reader, writer):
            client = connect(reader, writer)
            for stream_id, more in ((1, ()), (3, (THROUGH_ASGI,))):
                client.send(HEADERS, END_HEADERS, stream_id, head(path(method), (), *more))
                client.send(DATA, END_STREAM, stream_id, whole)
            await eventually_async(lambda: running.metric("listings_rpcs_in_flight") == 2)
            for stream_id in (1, 3):
                client.reset(stream_id)
            await eventually_async(lambda: running.metric("listings_rpcs_in_flight") == 0)

    with locked(orders):
        asyncio.run(cancel())
    assert running.metric("listings_rpcs_total", **series) == before + 2


def test_small_responses_are_not_compressed(running: Service, order_id: int, method: str) -> None:
    """Through ASGI they are, for a client that accepts it. The message is the same."""
    whole = body(method, VALID | {"order_id": order_id, "page_size": 1})
    fast, through_asgi = asyncio.run(both_ways(running, path(method), [whole], [GZIP]))
    assert through_asgi.headers["grpc-encoding"] == "gzip"
    assert "grpc-encoding" not in fast.headers
    assert same(fast) == same(uncompressed(through_asgi))


@pytest.mark.parametrize(("accepted", "encoding"), ACCEPTED.items())
def test_a_page_larger_than_a_window(
    running: Service, large_page: ListOrdersRequest, accepted: bytes, encoding: str
) -> None:
    """It is compressed as through ASGI, by the first encoding that the client accepts."""
    whole, headers = envelope(large_page.to_binary()), [(GZIP[0], accepted)] if accepted else []
    fast, through_asgi = asyncio.run(both_ways(running, path("ListOrders"), [whole], headers))
    assert was_fast(fast)
    assert through_asgi.headers["grpc-encoding"] == encoding
    assert fast.headers.get("grpc-encoding", "identity") == encoding
    assert len(fast.body) == len(through_asgi.body)
    assert same(uncompressed(fast)) == same(uncompressed(through_asgi))
    content = uncompressed(fast).body[5:]
    assert len(content) > 65_535
    assert (len(fast.body) < len(content) / 4) == (encoding == "gzip")
    assert len(ListOrdersResponse.from_binary(content).orders) == 1000
