"""The fields of an update beside the payment's own, each over every protocol."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from protobuf.wkt import Timestamp

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import GetOrderRequest, Order
from server.gen.listings.v1.orders_pb import ListOrderPaymentEventsRequest as EventsRequest
from tests.support.callers import CALLERS, PATH, Call
from tests.support.history import events
from tests.support.orders import Orders
from tests.support.reading import MICROSECOND, broken_rules, refused
from tests.support.service import Service
from tests.support.tokens import WRITE, Issuer, bearer
from tests.support.updates import refusal, refused_events, update

OVERRIDE = "payments:override"
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
MISSING = 2**62


def at(moment: datetime) -> Timestamp:
    return Timestamp.from_datetime(moment)


def etag(call: Call, order_id: int) -> str:
    return str(call(GetOrderRequest(order_id=order_id)).order.etag)


def last_event(call: Call, order_id: int) -> Any:
    return call(EventsRequest(order_id=order_id)).events[-1]


@pytest.mark.parametrize(
    "values",
    [
        {"payment_event_time": at(NOON)},
        {"etag": "0"},
        {"override_reason": "by phone"},
        {"currency": "EUR"},
        {"payment_event_time": at(NOON), "etag": "0", "override_reason": "x", "currency": "EUR"},
    ],
    ids="-".join,
)
def test_what_sets_nothing_is_no_update(call: Call, orders: Orders, values: dict[str, Any]) -> None:
    order_id = orders.add()
    before = orders.row(order_id)
    found = broken_rules(call, update(order_id, **values))
    assert found == [("", "PAYMENT_FIELDS_AT_LEAST_ONE")]
    assert orders.row(order_id) == before


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("etag", "", "STRING_MIN_LEN"),
        ("etag", "x" * 101, "STRING_MAX_LEN"),
        ("override_reason", "", "STRING_MIN_LEN"),
        ("override_reason", "x" * 501, "STRING_MAX_LEN"),
        ("override_reason", "a\0b", "STRING_NOT_CONTAINS"),
        ("captured_amount", -1, "INT64_GTE"),
        ("refunded_amount", -(2**63), "INT64_GTE"),
        ("currency", "", "STRING_PATTERN"),
        ("currency", "EURO", "STRING_PATTERN"),
        ("currency", "E1R", "STRING_PATTERN"),
        ("currency", "EUR\n", "STRING_PATTERN"),
        ("currency", "\u0130st", "STRING_PATTERN"),
    ],
)
def test_rules_of_fields(call: Call, orders: Orders, field: str, value: Any, rule: str) -> None:
    order_id = orders.add()
    before = orders.row(order_id)
    request = update(order_id, payment_status="paid", **{field: value})
    assert broken_rules(call, request) == [(field, rule)]
    assert orders.row(order_id) == before


class TestEventTime:
    def test_it_is_kept_in_microseconds(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        given = Timestamp(seconds=1_748_779_200, nanos=123_456_789)
        kept = Timestamp(seconds=1_748_779_200, nanos=123_456_000)
        request = update(order_id, payment_status="processing", payment_event_time=given)
        assert call(request).order.payment_event_time == kept
        assert last_event(call, order_id).payment_event_time == kept
        assert orders.row(order_id)["payment_event_time"] == kept.to_datetime()

    def test_it_makes_requests_with_one_key_different(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()

        def sent(moment: datetime) -> bool:
            key = f"{order_id} time"
            request = update(order_id, payment_idempotency_key=key, payment_status="processing")
            request.payment_event_time = at(moment)
            return bool(call(request).replayed)

        assert [sent(NOON), sent(NOON + MICROSECOND), sent(NOON)] == [False, False, True]

    def test_a_limit_of_five_minutes_ahead(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        now = datetime.now(UTC)
        ahead = update(order_id, payment_status="processing")
        ahead.payment_event_time = at(now + timedelta(seconds=330))
        failure = refused(call, ahead)
        assert broken_rules(call, ahead) == [
            ("payment_event_time", "TIMESTAMP_AT_MOST_FIVE_MINUTES_AHEAD")
        ]
        assert failure.message.startswith("payment_event_time must be at most five minutes ahead")
        # At the limit by this clock, before it by the server's when it looks.
        ahead.payment_event_time = at(now + timedelta(seconds=300))
        assert call(ahead).order.payment_event_time == at(now + timedelta(seconds=300))

    @pytest.mark.parametrize(
        "given",
        [
            Timestamp(seconds=174_877_920_000),  # tenths of seconds
            Timestamp(seconds=253_402_300_799, nanos=999_999_999),
            Timestamp(seconds=-1, nanos=999_999_999),
            Timestamp(seconds=-62_135_596_800),
        ],
        ids=["tenths-as-seconds", "year-9999", "before-1970", "year-1"],
    )
    def test_a_time_that_is_none(self, call: Call, orders: Orders, given: Timestamp) -> None:
        order_id = orders.add()
        request = update(order_id, payment_status="paid", payment_event_time=given)
        failure = refused(call, request)
        assert (failure.code, "payment_event_time" in failure.message) == ("invalid_argument", True)
        assert orders.row(order_id)["payment_status"] == "pending"

    def test_the_first_moment_of_all(self, call: Call, orders: Orders) -> None:
        first = Timestamp()
        request = update(orders.add(), payment_status="processing", payment_event_time=first)
        assert call(request).order.payment_event_time == first

    def test_an_earlier_event_is_late_by_whole_seconds(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()

        def pending(moment: datetime) -> Any:
            return update(order_id, payment_status="pending", payment_event_time=at(moment))

        later = NOON + timedelta(seconds=0.9)
        call(update(order_id, payment_status="processing", payment_event_time=at(later)))
        found = refusal(call, pending(NOON - MICROSECOND))
        assert found.reason == "PAYMENT_EVENT_LATE"
        assert call(pending(NOON)).order.payment_event_time == at(later)


class TestEtag:
    def test_an_update_of_what_was_read(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        for status in ("processing", "authorized", "paid"):
            read = etag(call, order_id)
            response = call(update(order_id, payment_status=status, etag=read))
            assert response.order.payment_status == status
            assert response.order.etag == etag(call, order_id) != read

    def test_an_update_that_changed_nothing_since(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        call(update(order_id, payment_status="paid", captured_amount=700))
        read = etag(call, order_id)
        assert call(update(order_id, payment_status="paid")).order.etag == read

        response = call(update(order_id, captured_amount=1_400, etag=read))

        assert response.order.captured_amount == 1_400

    def test_an_update_of_what_has_changed_since(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        read = etag(call, order_id)
        call(update(order_id, payment_session_id="cs_1"))
        before = orders.row(order_id)

        failure = refused(call, update(order_id, payment_status="paid", etag=read))

        assert failure.code == "aborted"
        assert failure.details == (
            ErrorInfo(
                reason="ETAG_MISMATCH", domain="listings.v1", metadata={"order_id": str(order_id)}
            ),
        )
        assert "nothing was written: read it again" in failure.message
        assert orders.row(order_id) == before
        assert refused_events(orders.url, order_id) == []

    @pytest.mark.parametrize(
        "text",
        ["zz", "-1", "0x0", "00", " 0", "1_0", "f" * 16, "1" + "0" * 16, "f" * 100, "\u0660"],
    )
    def test_any_other_text_is_none(self, call: Call, orders: Orders, text: str) -> None:
        order_id = orders.add()
        request = update(order_id, payment_status="paid", etag=text)
        assert refusal(call, request, "aborted").reason == "ETAG_MISMATCH"
        assert orders.row(order_id)["payment_status"] == "pending"

    def test_the_columns_of_the_shop_do_not_move_it(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        call(update(order_id, payment_status="processing"))
        read = etag(call, order_id)
        orders.change(order_id, status="confirmed", buyer_id=8, updated_at=NOON)
        assert etag(call, order_id) == read

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("payment_status", "paid"),
            ("payment_session_id", "cs_by_hand"),
            ("captured_amount", 1),
            ("refunded_amount", 1),
            ("payment_event_time", NOON),
        ],
    )
    def test_a_change_by_hand_moves_it(
        self, call: Call, orders: Orders, column: str, value: Any
    ) -> None:
        order_id = orders.add()
        call(update(order_id, payment_status="processing"))
        read = etag(call, order_id)
        orders.change(order_id, **{column: value})
        assert etag(call, order_id) != read
        request = update(order_id, payment_status="paid", etag=read)
        assert refusal(call, request, "aborted").reason == "ETAG_MISMATCH"
        assert call(update(order_id, payment_transaction_id="x", etag=etag(call, order_id))).success

    def test_a_replay_does_not_compare_it(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        request = update(order_id, payment_idempotency_key=f"{order_id}", captured_amount=5)
        request.etag = etag(call, order_id)
        assert not call(request).replayed
        assert call(request).replayed

    def test_it_comes_before_the_rules_of_payments(self, call: Call, orders: Orders) -> None:
        order_id = orders.add(payment_status="refunded")
        request = update(order_id, payment_status="pending", etag="zz")
        assert refusal(call, request, "aborted").reason == "ETAG_MISMATCH"


class TestAmounts:
    def test_they_only_grow(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        call(update(order_id, payment_status="paid", captured_amount=500))
        order = call(update(order_id, captured_amount=400, refunded_amount=0)).order
        assert (order.captured_amount, order.refunded_amount) == (500, 0)
        event = last_event(call, order_id)
        assert (event.captured_amount, event.refunded_amount) == (400, 0)
        order = call(update(order_id, captured_amount=2**63 - 1, refunded_amount=3)).order
        assert (order.captured_amount, order.refunded_amount) == (2**63 - 1, 3)

    def test_they_alone_are_an_update_and_no_status(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        call(update(order_id, payment_status="authorized"))
        before = orders.row(order_id)
        order = call(update(order_id, captured_amount=11_983)).order
        assert order.payment_state == Order.PaymentState.AUTHORIZED
        assert orders.row(order_id)["payment_status_since"] == before["payment_status_since"]
        event = last_event(call, order_id)
        assert event.captured_amount == 11_983
        assert (event.state_before, event.state_after) == (Order.PaymentState.AUTHORIZED,) * 2

    def test_zero_is_an_amount_and_none_is_absent(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        order = call(update(order_id, captured_amount=0)).order
        assert (order.has_field("captured_amount"), order.captured_amount) == (True, 0)
        assert not order.has_field("refunded_amount")
        event = last_event(call, order_id)
        assert (event.has_field("captured_amount"), event.captured_amount) == (True, 0)
        assert not event.has_field("refunded_amount")

    def test_a_reversal_sets_them(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        call(update(order_id, payment_status="paid", captured_amount=500))
        call(update(order_id, payment_status="refunded", refunded_amount=500))
        order = call(update(order_id, payment_status="refund_failed", refunded_amount=0)).order
        assert (order.payment_state, order.refunded_amount) == (Order.PaymentState.PAID, 0)

    def test_a_refund_that_fails_beside_another(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        call(update(order_id, payment_status="refunded", captured_amount=500, refunded_amount=500))
        order = call(update(order_id, payment_status="refund_failed", refunded_amount=200)).order
        assert order.payment_state == Order.PaymentState.PARTIALLY_REFUNDED
        assert (order.captured_amount, order.refunded_amount) == (500, 200)

    def test_an_override_sets_them(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        call(update(order_id, payment_status="paid", captured_amount=500))
        order = call(update(order_id, captured_amount=50, override_reason="a typing error")).order
        assert order.captured_amount == 50

    def test_a_refused_move_changes_none(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        call(update(order_id, payment_status="refunded", refunded_amount=5))
        late = update(order_id, payment_status="paid", captured_amount=7, refunded_amount=6)
        assert refusal(call, late).reason == "PAYMENT_STATUS_REFUSED"
        row = orders.row(order_id)
        assert (row["captured_amount"], row["refunded_amount"]) == (None, 5)
        (event,) = refused_events(orders.url, order_id)
        assert (event["captured_amount"], event["refunded_amount"]) == (7, 6)


@pytest.mark.parametrize("currency", ["EUR", "eur", "eUr"])
def test_a_currency_in_any_case(call: Call, orders: Orders, currency: str) -> None:
    order_id = orders.add()
    assert call(update(order_id, payment_status="paid", currency=currency)).order.currency == "EUR"
    assert last_event(call, order_id).currency == "EUR"


class TestOverride:
    def test_without_tokens_everybody_may(self, call: Call, orders: Orders) -> None:
        order_id = orders.add()
        call(update(order_id, payment_status="refunded"))
        back = update(order_id, payment_status="pending", override_reason="the bank says so: é😀")
        order = call(back).order
        assert order.payment_state == Order.PaymentState.PENDING
        assert last_event(call, order_id).override_reason == "the bank says so: é😀"
        assert refused_events(orders.url, order_id) == []

    def test_it_passes_over_no_currency_key_or_etag(self, call: Call, orders: Orders) -> None:
        used, order_id = orders.add(), orders.add(payment_status="refunded")
        call(update(used, payment_idempotency_key=f"{used}"))
        before = orders.row(order_id)
        for values, code, reason in (
            ({"currency": "USD"}, "failed_precondition", "PAYMENT_CURRENCY_MISMATCH"),
            ({"payment_idempotency_key": f"{used}"}, "already_exists", "IDEMPOTENCY_KEY_REUSED"),
            ({"etag": "zz"}, "aborted", "ETAG_MISMATCH"),
        ):
            given: dict[str, Any] = {"payment_status": "pending", "override_reason": "x"}
            assert refusal(call, update(order_id, **given | values), code).reason == reason
        assert orders.row(order_id) == before

    def test_another_reason_makes_no_other_event(self, call: Call, orders: Orders) -> None:
        order_id = orders.add(payment_status="refunded")
        key = f"{order_id}"
        request = update(order_id, payment_idempotency_key=key, payment_status="pending")
        request.override_reason = "one"
        assert not call(request).replayed
        request.override_reason = "another"
        assert call(request).replayed
        assert last_event(call, order_id).override_reason == "one"


@pytest.fixture(params=CALLERS)
def caller(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_override_needs_its_permission(guarded: Service, issuer: Issuer, caller: str) -> None:
    orders = Orders(guarded.database_url)
    order_id = orders.add(payment_status="refunded")
    with CALLERS[caller](guarded.base_url, **bearer(issuer.token(WRITE))) as call:
        # Before anything is looked for, and before the rules of the fields.
        for values in (
            {"order_id": order_id},
            {"order_id": MISSING},
            {"order_id": MISSING, "etag": "zz"},
            {"order_id": -1, "override_reason": ""},
        ):
            given: dict[str, Any] = {"payment_status": "pending", "override_reason": "x"}
            failure = refused(call, update(**given | values))
            assert failure.code == "permission_denied"
            assert failure.details == (
                ErrorInfo(
                    reason="PERMISSION_MISSING",
                    domain="listings.v1",
                    metadata={"path": f"{PATH}#override_reason", "permission": OVERRIDE},
                ),
            )
        found = refusal(call, update(order_id, payment_status="pending"))
        assert found.reason == "PAYMENT_STATUS_REFUSED"
    assert orders.row(order_id)["payment_status"] == "refunded"
    assert [each["override_reason"] for each in events(orders.url, order_id)] == [None]


def test_an_override_with_its_permission(guarded: Service, issuer: Issuer, caller: str) -> None:
    orders = Orders(guarded.database_url)
    order_id = orders.add(payment_status="refunded")
    token = issuer.token(WRITE, OVERRIDE, sub="ann")
    request = update(order_id, payment_status="pending", override_reason="by phone")
    with CALLERS[caller](guarded.base_url, **bearer(token)) as call:
        assert call(request).order.payment_state == Order.PaymentState.PENDING
        failure = refused(call, update(MISSING, payment_status="paid", override_reason="x"))
        assert failure.code == "not_found"
    event = events(orders.url, order_id)[-1]
    assert (event["override_reason"], event["caller"]) == ("by phone", "ann")
    # The permission alone is not one to update.
    with CALLERS[caller](guarded.base_url, **bearer(issuer.token(OVERRIDE))) as call:
        failure = refused(call, request)
    assert (failure.code, OVERRIDE in failure.message) == ("permission_denied", False)
