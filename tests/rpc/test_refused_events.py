"""ListRefusedPaymentEvents, over every protocol."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.gen.listings.v1.orders_pb import (
    ListRefusedPaymentEventsRequest,
    Order,
    UpdateOrderPaymentRequest,
)
from tests.support.callers import Call, grpcio, json_client, path
from tests.support.orders import Orders
from tests.support.reading import broken_rules, pages, refused, state, time
from tests.support.service import Service

HOUR = timedelta(hours=1)
PAID = {"payment_status": "paid", "payment_state": 9}


def refuse(running: Service, order_id: int, **payment: Any) -> None:
    with grpcio(running.base_url) as call:
        failure = refused(call, UpdateOrderPaymentRequest(order_id=order_id, **payment))
        assert failure.code == "failed_precondition"


def ids(response: Any) -> list[int]:
    return [each.order_id for each in response.events]


def test_a_refused_event_as_it_is_on_record(
    read: Call, running: Service, orders: Orders, number: int
) -> None:
    now = datetime.now(UTC)
    order_id = orders.add(
        **PAID, payment_provider="stripe", payment_intent_id="pi_1", storefront_id=number
    )
    payment: dict[str, Any] = {
        "payment_provider": "stripe",
        "payment_session_id": "cs_2",
        "payment_intent_id": "pi_2",
        "payment_idempotency_key": f"evt_{order_id}",
        "payment_status": "succeeded",
        "payment_transaction_id": "ch_2",
    }
    request = UpdateOrderPaymentRequest(
        order_id=order_id,
        **payment,
        payment_event_time=time(now),
        captured_amount=500,
        refunded_amount=0,
        currency="eur",
    )
    with json_client(running.base_url) as client:
        for name in ("first", "second"):
            headers = {"x-request-id": f"{name}-{order_id}"}
            response = client.post(path(request), content=request.to_json(), headers=headers)
            assert response.json()["code"] == "failed_precondition"

    (event,) = read(ListRefusedPaymentEventsRequest(order_id=order_id)).events

    assert (event.order_id, event.storefront_id) == (order_id, number)
    assert (event.reason, event.times, event.written) == ("PAYMENT_DUPLICATE", 2, False)
    assert state(event.requested) == payment
    assert event.requested_state is Order.PaymentState.PAID
    assert event.payment_event_time.to_datetime() == now
    assert (event.captured_amount, event.refunded_amount, event.currency) == (500, 0, "EUR")
    assert event.has_field("refunded_amount")
    assert event.order_payment.payment_intent_id == "pi_1"
    assert not event.order_payment.has_field("payment_session_id")
    assert event.order_payment_state is Order.PaymentState.PAID
    assert event.order_payment_event_time is None
    assert event.request_id == f"first-{order_id}"
    assert not event.has_field("caller")
    assert now < event.first_refused_at.to_datetime() < event.last_refused_at.to_datetime()


def test_a_key_of_another_order_is_on_record_for_one_that_there_is_not(
    read: Call, running: Service, orders: Orders, number: int
) -> None:
    orders.add(payment_idempotency_key=f"evt_{number}")
    nobody = 10**15 + number
    request = UpdateOrderPaymentRequest(order_id=nobody, payment_idempotency_key=f"evt_{number}")
    with grpcio(running.base_url) as call:
        assert refused(call, request).code == "already_exists"

    (event,) = read(ListRefusedPaymentEventsRequest(order_id=nobody)).events

    assert event.reason == "IDEMPOTENCY_KEY_REUSED"
    assert not event.has_field("storefront_id")
    assert event.requested_state is event.order_payment_state is Order.PaymentState.UNSPECIFIED
    assert set(state(event.order_payment).values()) == {None}


def test_filters(read: Call, running: Service, orders: Orders, number: int) -> None:
    late, another = (orders.add(storefront_id=number, **PAID) for _ in range(2))
    elsewhere = orders.add(storefront_id=number + 1, **PAID)
    provider = f"p{number}"
    refuse(running, late, payment_status="pending", payment_provider=provider)
    refuse(running, another, payment_status="pending")
    refuse(running, another, payment_status="paid", currency="USD", payment_provider=provider)
    refuse(running, elsewhere, payment_status="pending", payment_provider=provider)
    mismatch = "PAYMENT_CURRENCY_MISMATCH"

    for filters, expected in (
        ({"order_id": another}, [another, another]),
        ({"storefront_id": number}, [another, another, late]),
        ({"payment_provider": provider}, [elsewhere, another, late]),
        ({"order_id": another, "reason": mismatch}, [another]),
        ({"storefront_id": number, "payment_provider": provider}, [another, late]),
        ({"storefront_id": number, "reason": "PAYMENT_EVENT_LATE"}, []),
    ):
        values: dict[str, Any] = dict(filters)
        assert ids(read(ListRefusedPaymentEventsRequest(**values))) == expected


def test_times(read: Call, running: Service, orders: Orders, number: int) -> None:
    """From a time on, and before another: of the first refusal."""
    order_id = orders.add(storefront_id=number, **PAID)
    for word in ("pending", "processing"):
        refuse(running, order_id, payment_status=word)
    refuse(running, order_id, payment_status="pending")
    everything = ListRefusedPaymentEventsRequest(order_id=order_id)
    second, first = (each.first_refused_at for each in read(everything).events)
    assert first is not None
    assert second is not None

    def between(**limits: Any) -> list[str]:
        request = ListRefusedPaymentEventsRequest(order_id=order_id, **limits)
        return [each.requested.payment_status for each in read(request).events]

    assert between(refused_from=second) == ["processing"]
    assert between(refused_before=second) == ["pending"]
    assert between(refused_from=first, refused_before=second) == ["pending"]
    backwards = ListRefusedPaymentEventsRequest(refused_from=second, refused_before=second)
    assert [rule for _, rule in broken_rules(read, backwards)] == [
        "TIME_RANGE_BEGINS_BEFORE_IT_ENDS"
    ]


def test_pages(read: Call, running: Service, orders: Orders, number: int) -> None:
    made = [orders.add(storefront_id=number, **PAID) for _ in range(5)]
    for order_id in made:
        refuse(running, order_id, payment_status="pending")
    for sizes in ([1], [2], [5], [0], [1, 3]):
        walk = pages(read, ListRefusedPaymentEventsRequest(storefront_id=number), sizes)
        assert [each for page in walk for each in ids(page)] == made[::-1]


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("order_id", 0, "INT64_GT"),
        ("storefront_id", 0, "INT64_GT"),
        ("reason", "", "STRING_MIN_LEN"),
        ("payment_provider", "x" * 51, "STRING_MAX_LEN"),
        ("page_size", -1, "INT32_GTE"),
        ("page_token", "x", "PAGE_TOKEN_INVALID"),
    ],
)
def test_rules(read: Call, field: str, value: Any, rule: str) -> None:
    request = ListRefusedPaymentEventsRequest(**{field: value})
    assert broken_rules(read, request) == [(field, rule)]
