"""ListRefusedPaymentEvents, over every protocol."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.gen.google.rpc.error_details_pb import ErrorInfo, RetryInfo
from server.gen.listings.v1.orders_pb import (
    ListRefusedPaymentEventsRequest,
    Order,
    UpdateOrderPaymentRequest,
)
from tests.support.callers import Call, grpcio, json_client, path
from tests.support.history import connect
from tests.support.orders import Orders
from tests.support.reading import broken_rules, pages, refused, state, time
from tests.support.service import Service
from tests.support.updates import refused_events
from tests.support.waiting import eventually

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
    missing = 10**15 + number
    request = UpdateOrderPaymentRequest(order_id=missing, payment_idempotency_key=f"evt_{number}")
    with grpcio(running.base_url) as call:
        assert refused(call, request).code == "already_exists"

    (event,) = read(ListRefusedPaymentEventsRequest(order_id=missing)).events

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


def test_a_provider_in_any_spelling(
    read: Call, running: Service, orders: Orders, number: int
) -> None:
    made = [orders.add(storefront_id=number, **PAID) for _ in range(2)]
    for order_id, provider in zip(
        made, (f"All-Secure {number}", f"allsecure{number}"), strict=True
    ):
        refuse(running, order_id, payment_status="pending", payment_provider=provider)
    for provider in (f"ALLSECURE_{number}", f"allsecure{number}"):
        request = ListRefusedPaymentEventsRequest(payment_provider=provider)
        assert ids(read(request)) == made[::-1]


def test_an_override_that_is_refused(
    read: Call, running: Service, orders: Orders, number: int
) -> None:
    """For its currency, say."""
    order_id = orders.add(storefront_id=number, **PAID)
    refuse(running, order_id, payment_status="pending", override_reason="why", currency="USD")
    refuse(running, order_id, payment_status="pending")
    without, overridden = read(ListRefusedPaymentEventsRequest(order_id=order_id)).events
    assert (overridden.reason, overridden.override_reason) == ("PAYMENT_CURRENCY_MISMATCH", "why")
    assert not without.has_field("override_reason")


@pytest.mark.parametrize(
    ("sqlstate", "reason"),
    [
        ("53100", "DATABASE_FULL"),
        ("25006", "DATABASE_READ_ONLY"),
        ("57P01", "REFUSAL_NOT_RECORDED"),
        ("55P03", "REFUSAL_NOT_RECORDED"),
        ("42501", "REFUSAL_NOT_RECORDED"),
    ],
)
def test_a_refusal_that_cannot_be_recorded(
    call: Call, orders: Orders, number: int, sqlstate: str, reason: str
) -> None:
    """The answer tells why PostgreSQL has not recorded it."""
    order_id = orders.add(storefront_id=number, **PAID)
    trigger = f"fail_{number}"
    with connect(orders.url) as connection:
        connection.execute(
            f"CREATE FUNCTION {trigger}() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE 'no' USING ERRCODE = '{sqlstate}'; END $$"
        )
        connection.execute(
            f"CREATE TRIGGER {trigger} BEFORE INSERT ON refused_payment_events FOR EACH ROW"
            f" WHEN (NEW.order_id = {order_id}) EXECUTE FUNCTION {trigger}()"
        )
    failure = refused(call, UpdateOrderPaymentRequest(order_id=order_id, payment_status="pending"))
    assert failure.code == "unavailable"
    assert failure.message == (
        "the event is refused (PAYMENT_STATUS_REFUSED), which cannot be recorded at present;"
        " nothing was written; try again"
    )
    assert isinstance(failure.details[0], RetryInfo)
    infos = [each for each in failure.details if isinstance(each, ErrorInfo)]
    assert [each.reason for each in infos] == [reason]
    assert refused_events(orders.url, order_id) == []


def test_the_log_names_the_order_that_is_asked_for(
    running: Service, orders: Orders, number: int
) -> None:
    """And none where there is none."""
    order_id = orders.add(storefront_id=number)
    requests = {
        f"one-{number}": ListRefusedPaymentEventsRequest(order_id=order_id),
        f"all-{number}": ListRefusedPaymentEventsRequest(storefront_id=number),
    }
    with json_client(running.base_url) as client:
        for name, request in requests.items():
            headers = {"x-request-id": name}
            assert client.post(path(request), content=request.to_json(), headers=headers).is_success

    def logged() -> list[object]:
        entries = [running.logged(event="rpc", request_id=name) for name in requests]
        return [each.get("order_id") for found in entries for each in found]

    eventually(lambda: len(logged()) == len(requests))
    assert logged() == [order_id, None]
    assert "order_id" not in running.logged(event="rpc", request_id=f"all-{number}")[0]


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
