"""ListOrderPayments, over every protocol."""

from typing import Any

import psycopg

from server.gen.listings.v1.orders_pb import (
    ListOrderPaymentsRequest,
    Order,
    OrderPayment,
    UpdateOrderPaymentRequest,
)
from tests.support.callers import Call, Failure, grpcio
from tests.support.orders import Orders
from tests.support.reading import refused
from tests.support.service import Service

STRIPE = {"payment_provider": "stripe"}


def send(running: Service, order_id: int, *events: dict[str, Any]) -> None:
    """Send events, of which some may be refused."""
    with grpcio(running.base_url) as call:
        for event in events:
            try:
                call(UpdateOrderPaymentRequest(order_id=order_id, **event))
            except Failure as failure:
                assert failure.code in ("failed_precondition", "already_exists"), failure


def event(status: str, session: str = "", intent: str = "", **others: Any) -> dict[str, Any]:
    ids = {"payment_session_id": session, "payment_intent_id": intent}
    given = {name: value for name, value in ids.items() if value}
    return {"payment_status": status} | given | others


def shown(payment: OrderPayment) -> tuple[object, ...]:
    return (
        list(payment.payment_session_ids),
        list(payment.payment_intent_ids),
        payment.payment_status,
        payment.current,
        payment.taken_events,
        payment.refused_events,
    )


def test_two_sessions_then_a_duplicate(read: Call, running: Service, orders: Orders) -> None:
    """The first attempt is replaced, and paid all the same."""
    order_id = orders.add()
    send(
        running,
        order_id,
        event("pending", "cs_1", **STRIPE),
        event("pending", "cs_2", **STRIPE),
        event("paid", intent="pi_2", payment_transaction_id="ch_2", captured_amount=700),
        event("expired", "cs_1", **STRIPE),
        event("paid", "cs_1", "pi_1", captured_amount=700, **STRIPE),
        event("pending", "cs_2", **STRIPE),
    )

    first, second = read(ListOrderPaymentsRequest(order_id=order_id)).payments

    assert shown(first) == (["cs_1"], ["pi_1"], "paid", False, 1, 2)
    assert shown(second) == (["cs_2"], ["pi_2"], "paid", True, 2, 1)
    assert list(second.payment_transaction_ids) == ["ch_2"]
    assert (first.payment_provider, first.captured_amount) == ("stripe", 700)
    assert first.payment_state is second.payment_state is Order.PaymentState.PAID
    assert not first.has_field("refunded_amount")
    times = [each.to_datetime() for each in (first.first_event_at, second.first_event_at)]
    assert times == sorted(times)
    assert first.last_event_at.to_datetime() > times[1]


def test_an_intent_that_an_earlier_attempt_has_left(
    read: Call, running: Service, orders: Orders
) -> None:
    """The session that follows is not of that intent, but of the next one."""
    order_id = orders.add()
    send(
        running,
        order_id,
        event("pending", "cs_1", "pi_1", **STRIPE),
        event("failed", "cs_1"),
        event("pending", "cs_2"),
        event("paid", intent="pi_2"),
    )

    payments = read(ListOrderPaymentsRequest(order_id=order_id)).payments

    assert [shown(each) for each in payments] == [
        (["cs_1"], ["pi_1"], "failed", False, 2, 0),
        (["cs_2"], ["pi_2"], "paid", True, 2, 0),
    ]


def test_a_session_that_each_of_its_events_names(
    read: Call, running: Service, orders: Orders
) -> None:
    """It is that of both intents, although the second one has not changed it."""
    order_id = orders.add()
    send(
        running,
        order_id,
        event("failed", "cs_1", "pi_1", **STRIPE),
        event("paid", "cs_1", "pi_2", **STRIPE),
    )

    (payment,) = read(ListOrderPaymentsRequest(order_id=order_id)).payments

    assert shown(payment) == (["cs_1"], ["pi_1", "pi_2"], "paid", True, 2, 0)


def test_the_same_id_of_two_providers(read: Call, running: Service, orders: Orders) -> None:
    order_id = orders.add()
    send(
        running,
        order_id,
        event("failed", intent="1", payment_provider="Stripe"),
        event("pending", intent="1", payment_provider="paypal"),
        event("paid", payment_provider="Pay_Pal"),
    )

    first, second = read(ListOrderPaymentsRequest(order_id=order_id)).payments

    assert (first.payment_provider, first.payment_status) == ("Stripe", "failed")
    assert (second.payment_provider, second.payment_status) == ("paypal", "paid")
    assert (first.current, second.current) == (False, True)


def test_a_refund_with_an_intent_of_its_own(read: Call, running: Service, orders: Orders) -> None:
    order_id = orders.add()
    allsecure = {"payment_provider": "allsecure"}
    send(
        running,
        order_id,
        event("paid", intent="uuid-1", **allsecure),
        event("refunded", intent="uuid-2", **allsecure),
    )

    (payment,) = read(ListOrderPaymentsRequest(order_id=order_id)).payments

    assert shown(payment) == ([], ["uuid-1", "uuid-2"], "refunded", True, 2, 0)


def test_a_provider_that_comes_after_the_session(
    read: Call, running: Service, orders: Orders
) -> None:
    order_id = orders.add()
    send(
        running,
        order_id,
        event("pending", "cs_1"),
        event("processing", **STRIPE),
        event("pending", "cs_2", **STRIPE),
        event("paid", "cs_1", **STRIPE),
    )

    first, second = read(ListOrderPaymentsRequest(order_id=order_id)).payments

    assert list(first.payment_session_ids) == ["cs_1"]
    assert list(second.payment_session_ids) == ["cs_2"]
    assert first.taken_events + first.refused_events == 3


def test_amounts_of_another_currency_do_not_count(
    read: Call, running: Service, orders: Orders
) -> None:
    order_id = orders.add()
    send(
        running,
        order_id,
        event("paid", intent="pi", captured_amount=5, **STRIPE),
        event("paid", intent="pi", captured_amount=9, currency="RSD", **STRIPE),
    )

    (payment,) = read(ListOrderPaymentsRequest(order_id=order_id)).payments

    assert (payment.captured_amount, payment.refused_events) == (5, 1)


def test_no_attempts(read: Call, orders: Orders) -> None:
    assert list(read(ListOrderPaymentsRequest(order_id=orders.add())).payments) == []


def test_events_refused_for_an_order_that_there_never_was(
    read: Call, running: Service, orders: Orders, number: int
) -> None:
    orders.add(payment_idempotency_key=f"evt_{number}")
    missing = 10**15 + number
    send(running, missing, {"payment_idempotency_key": f"evt_{number}"})

    assert refused(read, ListOrderPaymentsRequest(order_id=missing)).code == "not_found"


def test_attempts_outlive_their_order(read: Call, running: Service, orders: Orders) -> None:
    order_id = orders.add()
    send(running, order_id, event("paid", intent="pi", **STRIPE))
    with psycopg.connect(orders.url) as connection:
        connection.execute("DELETE FROM orders WHERE id = %s", (order_id,))

    (payment,) = read(ListOrderPaymentsRequest(order_id=order_id)).payments
    assert payment.taken_events == 1
