"""Deadlines and cancelled calls cancel their statements in PostgreSQL."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import httpx
import psycopg
import pytest

from server.gen.google.rpc.error_details_pb import ErrorInfo, RetryInfo
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest, UpdateOrderPaymentResponse
from tests.support import service
from tests.support.callers import PATH, Failure, grpc_failure, json_client, json_failure
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.waiting import eventually, lock_waits

LIMIT = 1.5  # LISTINGS_STATEMENT_TIMEOUT


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("deadlines") / "log"
    settings = {"statement_timeout": str(LIMIT), "pool_size": "2", "queue_size": "1"}
    with service.on_own_database(log, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def orders(running: Service) -> Orders:
    return Orders(running.database_url)


@contextmanager
def locked(orders: Orders, order_id: int) -> Iterator[psycopg.Connection]:
    """Lock the row of an order."""
    with psycopg.connect(orders.url) as holder:
        holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (order_id,))
        yield holder


def by_grpc(url: str, order_id: int, seconds: float | None) -> None:
    with grpc.insecure_channel(url.removeprefix("http://")) as channel:
        method = channel.unary_unary(
            PATH,
            request_serializer=UpdateOrderPaymentRequest.to_binary,
            response_deserializer=UpdateOrderPaymentResponse.from_binary,
        )
        try:
            method(
                UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"), timeout=seconds
            )
        except grpc.RpcError as error:
            raise grpc_failure(error) from error


def by_connect(url: str, order_id: int, seconds: float | None) -> None:
    headers = {} if seconds is None else {"connect-timeout-ms": str(int(seconds * 1000))}
    with json_client(url) as client:
        body = {"orderId": order_id, "paymentStatus": "paid"}
        response = client.post(PATH, json=body, headers=headers)
        if response.status_code != 200:
            raise json_failure(response)


def by_raw_grpc_web(url: str, order_id: int, seconds: float | None) -> None:
    headers = {} if seconds is None else {"grpc-timeout": f"{int(seconds * 1e6)}u"}
    message = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid").to_binary()
    body = b"\0" + len(message).to_bytes(4) + message
    with httpx.Client(timeout=20, trust_env=False) as client:
        headers["content-type"] = "application/grpc-web+proto"
        response = client.post(url + PATH, content=body, headers=headers)
    if b"grpc-status: 0" not in response.content:
        code = {b"4": "deadline_exceeded"}[
            response.content.partition(b"grpc-status: ")[2].split(b"\r")[0]
        ]
        raise Failure(code, "")


CALLS = {"grpc": by_grpc, "grpc-web": by_raw_grpc_web, "connect": by_connect}
OneCall = Callable[[str, int, float | None], None]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_deadline_cancels_the_statement(running: Service, orders: Orders, call: OneCall) -> None:
    order_id = orders.add()
    with locked(orders, order_id):
        began = time.monotonic()
        with pytest.raises(Failure) as caught:
            call(running.base_url, order_id, 0.4)
        assert time.monotonic() - began < LIMIT
        assert caught.value.code == "deadline_exceeded"
        eventually(lambda: lock_waits(orders.url) == 0, LIMIT)  # although the lock is still held
    assert orders.row(order_id)["payment_status"] == "pending"
    call(running.base_url, order_id, 5)


@pytest.mark.parametrize("seconds", [None, 30])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_statement_timeout_bounds_every_call(
    running: Service, orders: Orders, call: OneCall, seconds: float | None
) -> None:
    order_id = orders.add()
    with locked(orders, order_id):
        began = time.monotonic()
        with pytest.raises(Failure) as caught:
            call(running.base_url, order_id, seconds)
        assert LIMIT - 0.1 < time.monotonic() - began < LIMIT + 1
        assert caught.value.code == "deadline_exceeded"
        eventually(lambda: lock_waits(orders.url) == 0, 1)


def test_a_closed_connection_cancels_the_statement(running: Service, orders: Orders) -> None:
    order_id = orders.add()
    body = b'{"orderId": %d, "paymentStatus": "paid"}' % order_id
    with locked(orders, order_id):
        with socket.create_connection(("127.0.0.1", running.port)) as caller:
            caller.sendall(
                b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (PATH.encode(), len(body), body)
            )
            eventually(lambda: lock_waits(orders.url) == 1, 5)
            began = time.monotonic()
        eventually(lambda: lock_waits(orders.url) == 0, 5)
        assert time.monotonic() - began < LIMIT / 2
    assert orders.row(order_id)["payment_status"] == "pending"


def test_a_cancelled_grpc_call_cancels_the_statement(running: Service, orders: Orders) -> None:
    order_id = orders.add()
    with (
        locked(orders, order_id),
        grpc.insecure_channel(running.base_url.removeprefix("http://")) as channel,
    ):
        method = channel.unary_unary(PATH)
        request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
        call = method.future(request.to_binary())
        eventually(lambda: lock_waits(orders.url) == 1, 5)
        began = time.monotonic()
        call.cancel()
        eventually(lambda: lock_waits(orders.url) == 0, 5)
        assert time.monotonic() - began < LIMIT / 2
    assert orders.row(order_id)["payment_status"] == "pending"


def test_a_call_beyond_the_queue_is_rejected_at_once(running: Service, orders: Orders) -> None:
    """Two connections and a queue of one: the fourth call is rejected."""
    order_id = orders.add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid").to_binary()
    with grpc.insecure_channel(running.base_url.removeprefix("http://")) as channel:
        with locked(orders, order_id):
            method = channel.unary_unary(PATH)
            calls = [method.future(request) for _ in range(4)]
            eventually(lambda: any(each.done() for each in calls), LIMIT / 2)
            eventually(lambda: lock_waits(orders.url) == 2, LIMIT / 2)
            (refused,) = [each for each in calls if each.done()]
        failure = grpc_failure(refused)
        assert failure.code == "resource_exhausted"
        assert "nothing was written" in failure.message
        assert {type(each) for each in failure.details} == {RetryInfo, ErrorInfo}
        assert [each.code() for each in calls].count(grpc.StatusCode.OK) == 3


def test_the_timeout_covers_all_statements_of_a_call(running: Service, orders: Orders) -> None:
    """A rejected update reads the reason, for which it may wait for a connection again."""
    late, other = orders.add(), orders.add()
    with grpc.insecure_channel(running.base_url.removeprefix("http://")) as channel:
        method = channel.unary_unary(PATH)

        def call(order_id: int) -> grpc.Future:
            request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid")
            return method.future(request.to_binary())

        with locked(orders, other):
            with locked(orders, late) as holder:
                began = time.monotonic()
                refused = call(late)
                eventually(lambda: lock_waits(orders.url) == 1, LIMIT)
                time.sleep(LIMIT / 2)  # half of the timeout of ``late``
                others = [call(other), call(other)]  # take a connection, and wait for the next
                eventually(lambda: lock_waits(orders.url) == 2, LIMIT)
                holder.execute(
                    "UPDATE orders SET payment_status = 'refunded' WHERE id = %s", (late,)
                )
                holder.commit()
            with pytest.raises(grpc.RpcError):
                refused.result()
            assert refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert time.monotonic() - began < LIMIT * 1.3
        for each in others:
            each.result()
