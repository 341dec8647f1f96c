"""Updates of payments: requests, what they leave in the row, and the record of refused ones."""

from collections.abc import Mapping
from typing import Any, Final

from protobuf import Message

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support.callers import Call
from tests.support.history import connect
from tests.support.reading import refused

DERIVED: Final = (
    "updated_at",
    "payment_state",
    "payment_event_time",
    "payment_status_since",
    "payment_version",
    "contested_from",
    "payment_session_stale",
    "payment_intent_stale",
)
"""Columns that an update sets besides those that it names."""


def update(order_id: int, **values: Any) -> UpdateOrderPaymentRequest:
    """Return a request that sets ``values``, by field."""
    return UpdateOrderPaymentRequest(order_id=order_id, **values)


def derived(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an update has set in ``row`` besides what it names."""
    return {name: row[name] for name in DERIVED}


def refusal(call: Call, request: Message[Any], code: str = "failed_precondition") -> ErrorInfo:
    """Return why ``request`` is refused, with this code."""
    failure = refused(call, request)
    assert failure.code == code, failure
    (detail,) = failure.details
    assert isinstance(detail, ErrorInfo)
    assert detail.domain == "listings.v1"
    return detail


def refused_events(url: str, order_id: int) -> list[dict[str, Any]]:
    """Return the refused events of an order that are on record, oldest first."""
    with connect(url) as connection:
        return connection.execute(
            "SELECT * FROM refused_payment_events WHERE order_id = %s ORDER BY id", [order_id]
        ).fetchall()
