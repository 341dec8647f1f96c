"""Replays and late events, each over every protocol."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import ListOrderPaymentEventsRequest as EventsRequest
from server.gen.listings.v1.orders_pb import Order, UpdateOrderPaymentRequest
from tests.support import callers, service
from tests.support.callers import Call, Failure, json_client
from tests.support.orders import Orders
from tests.support.reading import find
from tests.support.service import Service

UNSETTLED = (
    *("pending", "processing", "requires_action", "authorized"),
    *("failed", "cancelled", "expired"),
)
SETTLED = ("paid", "partially_refunded", "refunded", "disputed", "charged_back", "returned")


def keyed(order_id: int, key: str, **values: Any) -> UpdateOrderPaymentRequest:
    return UpdateOrderPaymentRequest(
        order_id=order_id, payment_idempotency_key=f"{order_id} {key}", **values
    )


def info(call: Call, request: UpdateOrderPaymentRequest, code: str) -> ErrorInfo:
    with pytest.raises(Failure) as caught:
        call(request)
    assert caught.value.code == code
    (detail,) = caught.value.details
    assert isinstance(detail, ErrorInfo)
    assert detail.domain == "listings.v1"
    assert detail.metadata["order_id"] == str(request.order_id)
    return detail


def events(call: Call, order_id: int) -> int:
    return len(call(EventsRequest(order_id=order_id)).events)


def test_a_redelivered_event_changes_nothing(call: Call, orders: Orders) -> None:
    order_id = orders.add()
    processing = keyed(order_id, "1", payment_status="processing", payment_session_id="cs")
    paid = keyed(order_id, "2", payment_status="paid")
    assert not call(processing).replayed
    assert not call(paid).replayed
    row = orders.row(order_id)

    for request in (processing, paid, processing):
        response = call(request)
        assert response.replayed and response.success
        assert response.order.payment_status == "paid"
        assert response.order.updated_at.to_datetime() == row["updated_at"]
    assert orders.row(order_id) == row
    assert events(call, order_id) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"payment_status": "refunded"},
        {"payment_status": "paid", "payment_session_id": "cs"},
        {"payment_session_id": "cs"},
        {"payment_status": "paid", "captured_amount": 0},
        {"payment_status": "paid", "currency": "EUR"},
        {"payment_status": "PAID"},
        {},
    ],
    ids=str,
)
def test_a_key_with_other_values_is_another_event(
    call: Call, orders: Orders, values: dict[str, Any]
) -> None:
    order_id = orders.add(payment_session_id="cs")
    first, second = keyed(order_id, "1", payment_status="paid"), keyed(order_id, "1", **values)
    assert not call(first).replayed
    assert not call(second).replayed
    row = orders.row(order_id)
    assert {name: row[name] for name in values if name != "currency"} == {
        name: value for name, value in values.items() if name != "currency"
    }

    for request in (first, second, first):
        assert call(request).replayed
    assert orders.row(order_id) == row
    history = call(EventsRequest(order_id=order_id)).events
    assert [each.payment_idempotency_key for each in history][-2:] == [
        first.payment_idempotency_key
    ] * 2
    found = call(find("payment_idempotency_key", first.payment_idempotency_key))
    assert found.order.id == order_id


def test_a_key_comes_back_after_another(call: Call, orders: Orders) -> None:
    order_id = orders.add()
    steps = [
        keyed(order_id, "1", payment_status="authorized"),
        keyed(order_id, "2", payment_status="paid"),
        keyed(order_id, "1", payment_status="refunded"),
        keyed(order_id, "1", payment_status="refunded", payment_transaction_id="again"),
    ]
    assert [call(each).replayed for each in (*steps, *steps)] == [False] * 4 + [True] * 4
    row = orders.row(order_id)
    assert row["payment_idempotency_key"] == steps[0].payment_idempotency_key
    assert (row["payment_status"], row["payment_transaction_id"]) == ("refunded", "again")
    assert events(call, order_id) == 4


def test_another_event_with_a_key_is_judged(call: Call, orders: Orders) -> None:
    order_id = orders.add()
    call(keyed(order_id, "1", payment_status="refunded"))
    row = orders.row(order_id)
    late = keyed(order_id, "1", payment_status="pending")
    assert info(call, late, "failed_precondition").reason == "PAYMENT_STATUS_REFUSED"
    assert orders.row(order_id) == row


def test_a_key_that_was_replaced_stays_used(call: Call, orders: Orders) -> None:
    order_id, other = orders.add(), orders.add()
    first = keyed(order_id, "1", payment_status="paid")
    call(first)
    call(keyed(order_id, "2", payment_status="refunded"))
    row = orders.row(other)
    request = UpdateOrderPaymentRequest(
        order_id=other, payment_idempotency_key=first.payment_idempotency_key
    )
    assert info(call, request, "already_exists").reason == "IDEMPOTENCY_KEY_REUSED"
    assert orders.row(other) == row


def test_a_failed_request_does_not_use_its_key(call: Call, orders: Orders) -> None:
    order_id = orders.add(payment_status="paid")
    late = keyed(order_id, "1", payment_status="pending")
    info(call, late, "failed_precondition")
    with pytest.raises(Failure, match="not_found"):
        call(
            UpdateOrderPaymentRequest(
                order_id=2**62, payment_idempotency_key=late.payment_idempotency_key
            )
        )
    assert not call(keyed(order_id, "1", payment_status="refunded")).replayed


@pytest.fixture(scope="module")
def grpc(running: Service) -> Iterator[Call]:
    with callers.grpcio(running.base_url) as call:
        yield call


@pytest.mark.parametrize("status", SETTLED)
def test_a_settled_payment_never_becomes_unsettled(grpc: Call, orders: Orders, status: str) -> None:
    order_id = orders.add(payment_status=status)
    for late in UNSETTLED:
        request = UpdateOrderPaymentRequest(order_id=order_id, payment_status=late)
        assert info(grpc, request, "failed_precondition").metadata["from"] == status
    grpc(UpdateOrderPaymentRequest(order_id=order_id, payment_status=status))
    assert orders.row(order_id)["payment_status"] == status


@pytest.mark.parametrize("status", UNSETTLED)
def test_an_unsettled_payment_can_be_retried(grpc: Call, orders: Orders, status: str) -> None:
    back = {"pending", "requires_action"} if status == "authorized" else set()
    for after in (*UNSETTLED, *SETTLED):
        order_id = orders.add(payment_status=status)
        request = UpdateOrderPaymentRequest(order_id=order_id, payment_status=after)
        if after in back:
            info(grpc, request, "failed_precondition")
        else:
            assert grpc(request).order.payment_status == after


@pytest.mark.parametrize(
    ("status", "allowed"),
    [
        ("paid", {"partially_refunded", "refunded", "disputed", "charged_back", "returned"}),
        ("partially_refunded", {"refunded", "disputed", "charged_back", "returned"}),
        ("refunded", {"disputed", "charged_back", "returned"}),
        ("disputed", {"partially_refunded", "refunded", "charged_back"}),
        ("charged_back", set()),
        ("returned", set()),
    ],
)
def test_the_transitions_of_a_settled_payment(
    grpc: Call, orders: Orders, status: str, allowed: set[str]
) -> None:
    made = set()
    for after in SETTLED:
        request = UpdateOrderPaymentRequest(
            order_id=orders.add(payment_status=status), payment_status=after
        )
        try:
            grpc(request)
            made.add(after)
        except Failure as failure:
            assert failure.code == "failed_precondition"
    assert made == allowed | {status}


def test_words_of_one_state_replace_each_other(grpc: Call, orders: Orders) -> None:
    order_id = orders.add(payment_status="paid")
    since = None
    for word in ("PAID", "paid ", "Succeeded", "partially-captured", "paid"):
        order = grpc(UpdateOrderPaymentRequest(order_id=order_id, payment_status=word)).order
        assert (order.payment_status, order.payment_state) == (word, Order.PaymentState.PAID)
        since = since or order.payment_status_since
        assert order.payment_status_since == since


@pytest.mark.parametrize("status", ["paid", "refunded", "authorized", "processing"])
def test_an_unknown_word_does_not_replace_a_state_that_counts(
    grpc: Call, orders: Orders, status: str
) -> None:
    order_id = orders.add(payment_status=status)
    for word in ("piad", "settled_by_provider", "under_review"):
        request = UpdateOrderPaymentRequest(order_id=order_id, payment_status=word)
        found = info(grpc, request, "failed_precondition")
        assert (found.reason, found.metadata["to_state"]) == ("PAYMENT_STATUS_UNKNOWN", "unknown")
    assert orders.row(order_id)["payment_status"] == status


@pytest.mark.parametrize("status", ["pending", "requires_action", "failed", "odd"])
def test_an_unknown_word_replaces_others(grpc: Call, orders: Orders, status: str) -> None:
    order_id = orders.add(payment_status=status)
    for word, state in (
        ("in_review", Order.PaymentState.UNKNOWN),
        ("paid", Order.PaymentState.PAID),
    ):
        order = grpc(UpdateOrderPaymentRequest(order_id=order_id, payment_status=word)).order
        assert (order.payment_status, order.payment_state) == (word, state)


def test_outcomes_of_updates_are_counted_and_logged(tmp_path: Path, database_url: str) -> None:
    orders = Orders(database_url)
    order_id, other = orders.add(), orders.add()
    with (
        service.running(database_url, tmp_path / "log") as running,
        json_client(running.base_url) as client,
    ):

        def send(number: int, **values: object) -> None:
            client.post(callers.PATH, json=values, headers={"x-request-id": f"request-{number}"})

        paid = {"paymentStatus": "paid", "paymentIdempotencyKey": "secret-key"}
        send(1, orderId=order_id, **paid)
        send(2, orderId=order_id, **paid)
        send(3, orderId=other, **paid)
        send(4, orderId=order_id, paymentStatus="pending")
        send(5, orderId=404, paymentStatus="pending")
        send(6, orderId=order_id, paymentStatus="refunded", etag="zz")
        outcomes = ("applied", "replayed", "key_reused", "status_refused", "etag_mismatch")
        name = "listings_payment_updates_total"
        counted = [running.metric(name, outcome=outcome) for outcome in outcomes]
        assert running.stop() == 0

    assert counted == [1, 1, 1, 1, 1]
    found = [running.logged(event="rpc", request_id=f"request-{number}") for number in range(1, 7)]
    assert [[each.get("outcome") for each in entries] for entries in found] == [
        [None],
        ["replayed"],
        ["key_reused"],
        ["status_refused"],
        [None],
        ["etag_mismatch"],
    ]
    assert "secret-key" not in running.log.read_text()
