"""What each client library can do with the service, as docs/clients.md says it."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from protobuf import Message

from server.gen.google.rpc.error_details_pb import BadRequest, ErrorInfo
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrdersRequest,
    UpdateOrderPaymentRequest,
)
from tests.support import callers
from tests.support.callers import Failure
from tests.support.client_table import documented
from tests.support.orders import Orders
from tests.support.real_clients import LIBRARIES, Answer, Client, Library
from tests.support.service import Service

CALLS = 2_200  # the service replaces a connection after 2,000 streams
CANCELS = 90  # and after 64 resets
REFUSED = "NGHTTP2_REFUSED_STREAM"
CONCURRENCY = 32  # one connection carries 128 streams at a time


def answers(library: Library, client: Client, requests: Iterable[Message[Any]]) -> Iterator[Any]:
    """Make the calls, some at a time, and yield their answers in order."""
    running: deque[tuple[Message[Any], Answer]] = deque()

    def first() -> Any:
        request, answer = running.popleft()
        try:
            return answer.message()
        except Failure as failure:
            # As documented: it has not been processed, and is to be called again.
            if library.name == "connect-node" and REFUSED in failure.message:
                return client(request).message()
            raise

    for request in requests:
        running.append((request, client(request)))
        if len(running) == CONCURRENCY:
            yield first()
    while running:
        yield first()


def failure(client: Client, request: Message[Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        client(request).message()
    return caught.value


def test_update_and_read(library: Library, client: Client, orders: Orders, number: int) -> None:
    order_id = orders.add(storefront_id=number)
    with documented(library.name, "unary"):
        update = UpdateOrderPaymentRequest(
            order_id=order_id, payment_status="paid", payment_transaction_id=f"txn_{number}_ü, 付"
        )
        updated = client(update).message()
        assert updated.success
        assert updated.order.payment_transaction_id == update.payment_transaction_id
        assert client(GetOrderRequest(order_id=order_id)).message().order == updated.order
        listed = client(ListOrdersRequest(storefront_id=number)).message()
        assert listed.orders == [updated.order]
        assert orders.row(order_id)["payment_status"] == "paid"


@pytest.mark.parametrize(
    "library", [each for each in LIBRARIES if each.protocol == "grpc"], ids=str, indirect=True
)
def test_many_calls_over_one_channel(library: Library, client: Client, orders: Orders) -> None:
    """The service replaces the connection meanwhile, and no call fails."""
    order_id = orders.add()
    with documented(library.name, "unary"):
        requests = (GetOrderRequest(order_id=order_id) for _ in range(CALLS))
        assert all(each.order.id == order_id for each in answers(library, client, requests))


def test_deadlines_and_cancels(library: Library, client: Client, orders: Orders) -> None:
    """Each ends its own call, also when they are so many that the connection is replaced."""
    locked, free = orders.add(), orders.add()
    update = UpdateOrderPaymentRequest(order_id=locked, payment_status="paid")
    read = GetOrderRequest(order_id=free)
    with documented(library.name, "unary"), orders.locked(locked):
        late = client(update, deadline=0.2)
        ended = [client(update, cancel=0.05) for _ in range(CANCELS)]
        meanwhile = list(answers(library, client, [read] * CANCELS))
        assert {outcome(each) for each in ended} == {"canceled"}
        assert outcome(late) == "deadline_exceeded"
        assert {each.order.id for each in meanwhile} == {free}
        assert client(read).message().order.id == free


def outcome(answer: Answer) -> str:
    try:
        answer.message()
    except Failure as failure:
        return failure.code
    return "ok"


def test_errors(library: Library, client: Client, running: Service, orders: Orders) -> None:
    """Code and message are those that JSON has, character by character."""
    order_id = orders.add(payment_status="paid")
    refused = UpdateOrderPaymentRequest(order_id=order_id, payment_status="bezahlt? ü, 付 %2C+\t~")
    with (
        documented(library.name, "errors"),
        callers.CALLERS["connect-json-http1"](running.base_url) as json,
    ):
        for request in (refused, GetOrderRequest(order_id=2**60), GetOrderRequest()):
            with pytest.raises(Failure) as expected:
                json(request)
            found = failure(client, request)
            assert (found.code, found.message) == (expected.value.code, expected.value.message)


def test_details(library: Library, client: Client, orders: Orders) -> None:
    order_id = orders.add(payment_status="paid")
    with documented(library.name, "details"):
        refused = UpdateOrderPaymentRequest(order_id=order_id, payment_status="pending")
        (info,) = failure(client, refused).details
        assert isinstance(info, ErrorInfo)
        assert (info.domain, info.reason) == ("listings.v1", "PAYMENT_STATUS_REFUSED")
        assert info.metadata["order_id"] == str(order_id)
        (bad,) = failure(client, GetOrderRequest(order_id=0)).details
        assert isinstance(bad, BadRequest)
        assert [each.field for each in bad.field_violations] == ["order_id"]
