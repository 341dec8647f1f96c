"""The rules of UpdateOrderPayment, each over every protocol."""

from typing import Any

import pytest
from protobuf import Message

from persistence.models import PAYMENT_COLUMNS
from persistence.payment_states import PaymentState
from server.gen.google.rpc.error_details_pb import BadRequest, ErrorInfo
from server.gen.listings.v1.orders_pb import Order, UpdateOrderPaymentRequest
from tests.support.callers import Call, Failure
from tests.support.orders import Orders
from tests.support.reading import OPTIONAL, refused
from tests.support.strategies import LIMITS
from tests.support.updates import derived, update

HIDDEN = ("payment_version", "contested_from", "payment_session_stale", "payment_intent_stale")
"""Columns that are no field of the message."""
TIMES = ("created_at", "updated_at", "payment_event_time", "payment_status_since")
AMOUNTS = ("captured_amount", "refunded_amount")


def only_detail(failure: Failure) -> Message[Any]:
    (detail,) = failure.details
    return detail


def values(order: Any) -> dict[str, Any]:
    """The fields of an order, by column."""
    names = {field.name for field in Order.desc().fields} - {"etag"}
    found: dict[str, Any] = {name: getattr(order, name) for name in names}
    absent = {name: None for name in (*OPTIONAL, *AMOUNTS) if not order.has_field(name)}
    times = {name: each and each.to_datetime() for name in TIMES for each in [found[name]]}
    return found | absent | times


def test_all_six_fields_are_written_and_the_order_is_returned(call: Call, orders: Orders) -> None:
    order_id = orders.add()
    before = orders.row(order_id)
    payment: dict[str, Any] = {
        "payment_provider": "stripe",
        "payment_session_id": f"cs_{order_id}",
        "payment_intent_id": f"pi_{order_id}",
        "payment_idempotency_key": f"key_{order_id}",
        "payment_status": "paid",
        "payment_transaction_id": f"txn_{order_id}",
    }

    response = call(UpdateOrderPaymentRequest(order_id=order_id, **payment))

    after = orders.row(order_id)
    assert response.success
    assert response.order is not None
    assert values(response.order) == {
        name: value for name, value in after.items() if name not in HIDDEN
    }
    assert after == before | payment | derived(after)
    assert after["payment_state"] == PaymentState.PAID
    assert after["updated_at"] > before["updated_at"]


@pytest.mark.parametrize("field", PAYMENT_COLUMNS)
def test_unset_fields_are_not_changed(call: Call, orders: Orders, field: str) -> None:
    order_id = orders.add(**{name: f"old {name}" for name in PAYMENT_COLUMNS if "key" not in name})
    before = orders.row(order_id)
    value = f"new {order_id}"

    call(update(order_id, **{field: value}))

    after = orders.row(order_id)
    assert after == before | {field: value} | derived(after)
    assert after["updated_at"] > before["updated_at"]


def test_null_references_are_absent_in_the_response(call: Call, orders: Orders) -> None:
    order_id = orders.add()

    response = call(UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"))

    assert response.order is not None
    assert not [name for name in OPTIONAL if response.order.has_field(name)]


@pytest.mark.parametrize("character", ["x", "😀"])
@pytest.mark.parametrize(("field", "limit"), LIMITS.items())
def test_lengths_count_characters(
    call: Call, orders: Orders, field: str, limit: int, character: str
) -> None:
    order_id = orders.add()
    longest = f"{order_id}".ljust(limit, character)
    call(update(order_id, **{field: longest}))
    before = orders.row(order_id)
    assert before[field] == longest

    failure = refused(call, update(order_id, **{field: longest + character}))

    assert failure.code == "invalid_argument"
    assert only_detail(failure) == BadRequest(
        field_violations=[
            BadRequest.FieldViolation(
                field=field,
                description=f"must be at most {limit} characters",
                reason="STRING_MAX_LEN",
            )
        ]
    )
    assert orders.row(order_id) == before


@pytest.mark.parametrize("value", ["", "a\0b"])
@pytest.mark.parametrize("field", PAYMENT_COLUMNS)
def test_empty_values_and_nul_are_rejected(
    call: Call, orders: Orders, field: str, value: str
) -> None:
    order_id = orders.add()
    before = orders.row(order_id)

    failure = refused(call, update(order_id, **{field: value}))

    assert failure.code == "invalid_argument"
    detail = only_detail(failure)
    assert isinstance(detail, BadRequest)
    assert [each.field for each in detail.field_violations] == [field]
    assert orders.row(order_id) == before


@pytest.mark.parametrize("order_id", [0, -1, -(2**63)])
def test_order_id_must_be_positive(call: Call, order_id: int) -> None:
    failure = refused(call, UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"))

    assert failure.code == "invalid_argument"
    detail = only_detail(failure)
    assert isinstance(detail, BadRequest)
    assert [(each.field, each.reason) for each in detail.field_violations] == [
        ("order_id", "INT64_GT")
    ]


def test_every_broken_rule_is_named(call: Call) -> None:
    failure = refused(
        call,
        UpdateOrderPaymentRequest(
            order_id=0, payment_provider="", payment_session_id="s" * 256, payment_status="\0"
        ),
    )

    detail = only_detail(failure)
    assert isinstance(detail, BadRequest)
    assert {each.field for each in detail.field_violations} == {
        "order_id",
        "payment_provider",
        "payment_session_id",
        "payment_status",
    }
    assert all(each.field in failure.message for each in detail.field_violations)


def test_at_least_one_payment_field_must_be_set(call: Call, orders: Orders) -> None:
    order_id = orders.add()
    before = orders.row(order_id)

    failure = refused(call, UpdateOrderPaymentRequest(order_id=order_id))

    assert failure.code == "invalid_argument"
    detail = only_detail(failure)
    assert isinstance(detail, BadRequest)
    (violation,) = detail.field_violations
    assert violation.reason == "PAYMENT_FIELDS_AT_LEAST_ONE"
    assert all(name in violation.description for name in (*PAYMENT_COLUMNS, *AMOUNTS))
    assert orders.row(order_id) == before


@pytest.mark.parametrize("order_id", [2**62, 2**63 - 1])
def test_a_missing_order_is_not_found(call: Call, order_id: int) -> None:
    failure = refused(call, UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"))

    assert (failure.code, failure.message) == ("not_found", f"there is no order {order_id}")
    assert failure.details == ()


def test_a_key_of_another_order_is_rejected_and_nothing_is_written(
    call: Call, orders: Orders
) -> None:
    first, second = orders.add(), orders.add()
    key = f"allsecure_{first}"
    call(
        UpdateOrderPaymentRequest(
            order_id=first,
            payment_provider="allsecure",
            payment_intent_id="T",
            payment_status="paid",
            payment_idempotency_key=key,
        )
    )
    before = orders.row(first), orders.row(second)

    failure = refused(
        call,
        UpdateOrderPaymentRequest(
            order_id=second, payment_status="paid", payment_idempotency_key=key
        ),
    )

    assert failure.code == "already_exists"
    assert only_detail(failure) == ErrorInfo(
        reason="IDEMPOTENCY_KEY_REUSED",
        domain="listings.v1",
        metadata={"order_id": str(second)},
    )
    assert key not in failure.message
    assert failure.message.endswith("; the order was not changed; the event is on record")
    assert (orders.row(first), orders.row(second)) == before


def test_a_key_repeated_on_its_own_order(call: Call, orders: Orders) -> None:
    order_id = orders.add()
    request = UpdateOrderPaymentRequest(
        order_id=order_id, payment_status="paid", payment_idempotency_key=f"again_{order_id}"
    )
    call(request)

    assert call(request).success


def test_the_stripe_flow(call: Call, orders: Orders) -> None:
    order_id = orders.add()
    before = orders.row(order_id)

    call(
        UpdateOrderPaymentRequest(
            order_id=order_id,
            payment_provider="stripe",
            payment_session_id="cs_test_a",
            payment_status="pending",
        )
    )
    call(
        UpdateOrderPaymentRequest(
            order_id=order_id,
            payment_intent_id="pi_test_b",
            payment_status="paid",
            payment_transaction_id="txn_c",
        )
    )

    after = orders.row(order_id)
    assert after == before | {
        "payment_provider": "stripe",
        "payment_session_id": "cs_test_a",
        "payment_intent_id": "pi_test_b",
        "payment_status": "paid",
        "payment_transaction_id": "txn_c",
        **derived(after),
    }
    assert after["payment_state"] == PaymentState.PAID
