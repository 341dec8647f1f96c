"""Events that are refused: the error over every protocol, the record, the log and the metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from protobuf.wkt import Timestamp

from persistence.payment_states import PaymentState
from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import Order
from tests.support import service
from tests.support.callers import CALLERS, Call, json_client, path
from tests.support.history import payment_of
from tests.support.orders import Orders
from tests.support.reading import refused
from tests.support.service import Service
from tests.support.updates import derived, refusal, refused_events, update

ON_RECORD: Final = "; the order was not changed; the event is on record"
NOON: Final = datetime(2025, 6, 1, 12, tzinfo=UTC)
STRIPE: Final = {"payment_provider": "stripe", "payment_intent_id": "pi_1"}


class Case(NamedTuple):
    reason: str
    order: dict[str, Any]
    """The payment that the order has."""
    event: dict[str, Any]
    """What the request has."""
    states: dict[str, str]
    """What the metadata say besides the id of the order: "allowed" where the state decides."""
    text: str


CASES: Final = (
    Case(
        "PAYMENT_ATTEMPT_NOT_CURRENT",
        STRIPE | {"payment_status": "requires_capture"},
        {"payment_status": "Canceled", "payment_intent_id": "pi_2"},
        {
            "from": "requires_capture",
            "to": "Canceled",
            "from_state": "authorized",
            "to_state": "cancelled",
        },
        "the event is about another attempt than the one at which the order is AUTHORIZED",
    ),
    Case(
        "PAYMENT_DUPLICATE",
        STRIPE | {"payment_status": "paid"},
        {"payment_status": "succeeded", "payment_intent_id": "pi_2", "captured_amount": 5},
        {
            "from": "paid",
            "to": "succeeded",
            "from_state": "paid",
            "to_state": "paid",
        },
        "another attempt is PAID, and the order is PAID already",
    ),
    Case(
        "PAYMENT_EVENT_LATE",
        STRIPE | {"payment_status": "processing", "payment_event_time": NOON},
        {
            "payment_status": "failed",
            "payment_event_time": Timestamp.from_datetime(NOON - timedelta(seconds=1)),
        },
        {
            "from": "processing",
            "to": "failed",
            "from_state": "processing",
            "to_state": "failed",
        },
        "payment_event_time 2025-06-01T11:59:59Z is before 2025-06-01T12:00:00Z, when the order"
        " became PROCESSING",
    ),
    Case(
        "PAYMENT_CURRENCY_MISMATCH",
        STRIPE | {"payment_status": "charged_back"},
        {"captured_amount": 5, "currency": "usd"},
        {"from": "charged_back", "from_state": "charged_back"},
        "currency USD is not EUR, which the order is in",
    ),
    Case(
        "PAYMENT_STATUS_REFUSED",
        STRIPE | {"payment_status": "refunded"},
        {"payment_status": "pending", "payment_intent_id": "pi_1"},
        {
            "from": "refunded",
            "to": "pending",
            "from_state": "refunded",
            "to_state": "pending",
            "allowed": "disputed,charged_back,returned",
        },
        "the payment is REFUNDED, which may not become PENDING",
    ),
    Case(
        "PAYMENT_STATUS_UNKNOWN",
        STRIPE | {"payment_status": "disputed"},
        {"payment_status": "in_review"},
        {
            "from": "disputed",
            "to": "in_review",
            "from_state": "disputed",
            "to_state": "unknown",
            "allowed": "partially_refunded,refunded,charged_back",
        },
        'payment_status "in_review" is not known, and does not replace DISPUTED',
    ),
)

of_each_reason = pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)


@of_each_reason
def test_the_error_and_the_record(call: Call, orders: Orders, case: Case) -> None:
    order_id = orders.add(**case.order)
    before = orders.row(order_id)
    request = update(order_id, payment_transaction_id="txn_1", **case.event)

    failure = refused(call, request)

    assert (failure.code, failure.message) == ("failed_precondition", case.text + ON_RECORD)
    metadata = {"order_id": str(order_id)} | case.states
    info = ErrorInfo(reason=case.reason, domain="listings.v1", metadata=metadata)
    assert failure.details == (info,)
    assert orders.row(order_id) == before

    refused(call, request)
    (event,) = refused_events(orders.url, order_id)
    assert (event["reason"], event["times"], event["written"]) == (case.reason, 2, False)
    assert event["last_refused_at"] > event["first_refused_at"]
    assert event["payment_status"] == case.event.get("payment_status")
    assert event["payment_intent_id"] == case.event.get("payment_intent_id")
    assert event["payment_transaction_id"] == "txn_1"
    assert event["captured_amount"] == case.event.get("captured_amount")
    assert (event["payment_event_time"] is None) == ("payment_event_time" not in case.event)
    assert event["storefront_id"] == before["storefront_id"]
    assert {name: event[f"order_{name}"] for name in payment_of(before)} == payment_of(before)
    assert event["order_payment_event_time"] == before["payment_event_time"]
    assert PaymentState(event["order_payment_state"]).name.lower() == case.states["from_state"]
    to = event["requested_state"] and PaymentState(event["requested_state"]).name.lower()
    assert to == case.states.get("to_state")


@of_each_reason
def test_an_order_is_updated_after_a_refusal(call: Call, orders: Orders, case: Case) -> None:
    order_id = orders.add(**case.order)
    key = f"{order_id} refused"
    request = update(order_id, payment_idempotency_key=key, **case.event)
    assert refusal(call, request).reason == case.reason
    # The key was not used.
    other = orders.add()
    assert not call(update(other, payment_idempotency_key=key)).replayed


def test_a_key_of_another_order(call: Call, orders: Orders) -> None:
    used, order_id = orders.add(), orders.add()
    key = f"{used}"
    call(update(used, payment_idempotency_key=key))

    failure = refused(call, update(order_id, payment_idempotency_key=key, payment_status="paid"))

    text = "payment_idempotency_key has been used for another order"
    assert (failure.code, failure.message) == ("already_exists", text + ON_RECORD)
    (event,) = refused_events(orders.url, order_id)
    assert (event["reason"], event["payment_status"]) == ("IDEMPOTENCY_KEY_REUSED", "paid")
    assert (event["payment_idempotency_key"], event["times"]) == (key, 1)
    assert (event["requested_state"], event["order_payment_state"]) == (
        PaymentState.PAID,
        PaymentState.PENDING,
    )


def test_a_key_of_another_order_for_none(call: Call, orders: Orders, number: int) -> None:
    used, missing = orders.add(), 2**61 + orders.add()
    call(update(used, payment_idempotency_key=f"{used}"))
    request = update(missing, payment_idempotency_key=f"{used}", payment_status="paid")
    assert refusal(call, request, "already_exists").reason == "IDEMPOTENCY_KEY_REUSED"
    (event,) = refused_events(orders.url, missing)
    assert (event["storefront_id"], event["order_payment_status"]) == (None, None)


def test_no_such_order_is_not_on_record(call: Call, orders: Orders) -> None:
    missing = 2**61 + orders.add()
    assert refused(call, update(missing, payment_status="paid")).code == "not_found"
    assert refused_events(orders.url, missing) == []


# The switch of the guard


@contextmanager
def serving(url: str, log: Path, guard: str) -> Iterator[Service]:
    with service.running(url, log, status_guard=guard) as running:
        yield running


SHADOWED: Final = [case for case in CASES if case.reason != "PAYMENT_CURRENCY_MISMATCH"]
MONEY: Final = next(case for case in CASES if case.reason == "PAYMENT_CURRENCY_MISMATCH")
UPDATES: Final = "listings_payment_updates_total"
REFUSED: Final = "listings_refused_payment_events_total"


def test_shadow_writes_and_records(tmp_path: Path, database_url: str) -> None:
    orders = Orders(database_url)
    with serving(database_url, tmp_path / "log", "shadow") as running:
        for case in SHADOWED:
            for name, caller in CALLERS.items():
                order_id = orders.add(**case.order)
                before = orders.row(order_id)
                key = f"secret-{name}-{order_id}"
                request = update(order_id, payment_idempotency_key=key, **case.event)
                with caller(running.base_url) as call:
                    response = call(request)
                    assert call(request).replayed
                state = Order.PaymentState[case.states["to_state"].upper()]
                assert response.order.payment_state == state, case.reason
                row = orders.row(order_id)
                written = {n: v for n, v in case.event.items() if n != "payment_event_time"}
                key_ = {"payment_idempotency_key": key}
                assert row == before | written | key_ | derived(row), case.reason
                (event,) = refused_events(database_url, order_id)
                assert (event["reason"], event["written"]) == (case.reason, True)
                assert event["order_payment_status"] == case.order["payment_status"]
            count = len(CALLERS)
            assert running.metric(REFUSED, reason=case.reason, written="true") == count
            assert running.metric(REFUSED, reason=case.reason, written="false") == 0
            logged = running.logged(event="payment event would be refused", reason=case.reason)
            assert len(logged) == count
        applied = running.metric(UPDATES, outcome="applied")
        assert running.stop() == 0
    assert applied == len(SHADOWED) * len(CALLERS)
    assert "secret-" not in running.log.read_text()


@pytest.mark.parametrize("guard", ["shadow", "off"])
def test_a_currency_is_compared_in_any_case(tmp_path: Path, database_url: str, guard: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add(**MONEY.order)
    with serving(database_url, tmp_path / "log", guard) as running:
        for caller in CALLERS.values():
            with caller(running.base_url) as call:
                found = refusal(call, update(order_id, **MONEY.event))
                assert found.reason == MONEY.reason
        assert running.metric(REFUSED, reason=MONEY.reason, written="false") == len(CALLERS)
    (event,) = refused_events(database_url, order_id)
    assert (event["times"], event["written"]) == (len(CALLERS), False)


def test_off_writes_and_does_not_record(tmp_path: Path, database_url: str) -> None:
    orders = Orders(database_url)
    with serving(database_url, tmp_path / "log", "off") as running:
        for case in SHADOWED:
            order_id = orders.add(**case.order)
            with json_client(running.base_url) as client:
                request = update(order_id, **case.event)
                assert client.post(path(request), content=request.to_json()).is_success
            assert orders.row(order_id)["payment_status"] == case.event["payment_status"]
            assert refused_events(database_url, order_id) == []
            assert running.metric(REFUSED, reason=case.reason, written="true") == 0
        assert running.logged(event="payment event would be refused") == []


def test_refusals_are_counted_and_logged(tmp_path: Path, database_url: str) -> None:
    orders = Orders(database_url)
    levels = {
        "PAYMENT_DUPLICATE": "warning",
        "PAYMENT_CURRENCY_MISMATCH": "warning",
        "PAYMENT_STATUS_UNKNOWN": "warning",
    }
    with serving(database_url, tmp_path / "log", "on") as running:
        with json_client(running.base_url) as client:
            for case in CASES:
                order_id = orders.add(**case.order)
                request = update(
                    order_id, payment_idempotency_key="secret-key-of-this-event", **case.event
                )
                client.post(path(request), content=request.to_json())
        counted = {
            case.reason: running.metric(REFUSED, reason=case.reason, written="false")
            for case in CASES
        }
        outcomes = {case.reason: running.metric(UPDATES, outcome=outcome(case)) for case in CASES}
        assert running.stop() == 0
    assert counted == outcomes == {case.reason: 1 for case in CASES}
    for case in CASES:
        (entry,) = running.logged(event="payment event refused", reason=case.reason)
        assert entry["level"] == levels.get(case.reason, "info")
        assert entry["payment_idempotency_key"] == "secr…vent"
        assert entry["state"] == case.states["from_state"].upper()
        (rpc,) = running.logged(event="rpc", request_id=entry["request_id"])
        assert rpc["outcome"] == outcome(case)
    assert "secret-key" not in running.log.read_text()


def outcome(case: Case) -> str:
    return case.reason.removeprefix("PAYMENT_").removeprefix("EVENT_").lower()
