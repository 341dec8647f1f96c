"""Replays and late events, each over every protocol."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import ListOrderPaymentEventsRequest as EventsRequest
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support import callers, service
from tests.support.callers import Call, Failure, json_client
from tests.support.orders import Orders
from tests.support.service import Service

UNSETTLED = (
    *("pending", "processing", "requires_action", "authorized"),
    *("failed", "cancelled", "expired"),
)
SETTLED = ("paid", "partially_refunded", "refunded", "disputed", "charged_back")


def keyed(order_id: int, key: str, **values: str) -> UpdateOrderPaymentRequest:
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
        {"payment_status": "failed"},
        {"payment_status": "paid", "payment_session_id": "cs"},
        {"payment_session_id": "cs"},
    ],
    ids=str,
)
def test_a_key_with_other_values_is_rejected(
    call: Call, orders: Orders, values: dict[str, str]
) -> None:
    order_id = orders.add(payment_session_id="cs")
    call(keyed(order_id, "1", payment_status="paid"))
    row = orders.row(order_id)

    assert info(call, keyed(order_id, "1", **values), "already_exists").reason == (
        "IDEMPOTENCY_KEY_REUSED"
    )
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


def test_a_late_event_is_rejected_with_the_allowed_statuses(call: Call, orders: Orders) -> None:
    order_id = orders.add(payment_status="paid")
    row = orders.row(order_id)
    request = UpdateOrderPaymentRequest(
        order_id=order_id, payment_status="pending", payment_intent_id="late"
    )

    found = info(call, request, "failed_precondition")

    assert found.reason == "PAYMENT_STATUS_REFUSED"
    assert found.metadata == {
        "order_id": str(order_id),
        "from": "paid",
        "to": "pending",
        "allowed": "partially_refunded,refunded,disputed",
    }
    assert orders.row(order_id) == row


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
    for after in (*UNSETTLED, "paid", "partially_refunded", "refunded"):
        order_id = orders.add(payment_status=status)
        request = UpdateOrderPaymentRequest(order_id=order_id, payment_status=after)
        assert grpc(request).order.payment_status == after
    for after in ("disputed", "charged_back"):
        request = UpdateOrderPaymentRequest(order_id=orders.add(), payment_status=after)
        info(grpc, request, "failed_precondition")


@pytest.mark.parametrize(
    ("status", "allowed"),
    [
        ("paid", {"partially_refunded", "refunded", "disputed"}),
        ("partially_refunded", {"refunded", "disputed"}),
        ("disputed", {"paid", "charged_back"}),
        ("refunded", set()),
        ("charged_back", set()),
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


def test_unknown_statuses_are_not_guarded(grpc: Call, orders: Orders) -> None:
    order_id = orders.add(payment_status="paid")
    for status in ("settled_by_provider", "Paid", "pending"):
        request = UpdateOrderPaymentRequest(order_id=order_id, payment_status=status)
        assert grpc(request).order.payment_status == status


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
        outcomes = ("applied", "replayed", "key_reused", "status_refused")
        name = "listings_payment_updates_total"
        counted = [running.metric(name, outcome=outcome) for outcome in outcomes]
        assert running.stop() == 0

    assert counted == [1, 1, 1, 1]
    found = [running.logged(request_id=f"request-{number}") for number in range(1, 6)]
    assert [[each.get("outcome") for each in entries] for entries in found] == [
        [None],
        ["replayed"],
        ["key_reused"],
        ["status_refused"],
        [None],
    ]
    assert "secret-key" not in running.log.read_text()


def test_the_guard_can_be_turned_off(tmp_path: Path, database_url: str) -> None:
    order_id = Orders(database_url).add(payment_status="paid")
    with (
        service.running(database_url, tmp_path / "log", status_guard="off") as running,
        callers.grpcio(running.base_url) as call,
    ):
        request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="pending")
        assert call(request).order.payment_status == "pending"
