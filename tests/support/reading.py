"""Shared by the tests of the methods that read: requests, and conversions of responses."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from protobuf import Message, Oneof
from protobuf.wkt import Duration, Timestamp

from persistence.models import PAYMENT_COLUMNS
from persistence.status_words import StatusWords
from server.gen.google.rpc.error_details_pb import BadRequest
from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    ListOrderPaymentEventsRequest,
    ListOrdersRequest,
    ListRefusedPaymentEventsRequest,
    ListStuckPaymentsRequest,
    PaymentState,
)
from tests.support.callers import Call, Failure

MISSING_ORDER_ID: Final = 2**63 - 1
"""An id that no buyer, storefront or order has."""
REFERENCES: Final = (
    "payment_session_id",
    "payment_intent_id",
    "payment_transaction_id",
    "payment_idempotency_key",
)
OPTIONAL: Final = ("payment_provider", *REFERENCES, "captured_amount", "refunded_amount")
_INTERNAL: Final = (
    "payment_version",
    "contested_from",
    "payment_session_stale",
    "payment_intent_stale",
)
"""Columns of an order that no message has."""
LONG_AGO: Final = datetime(2001, 1, 1, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)
MICROSECOND: Final = timedelta(microseconds=1)


def refused(read: Call, request: Message[Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        read(request)
    return caught.value


def broken_rules(read: Call, request: Message[Any]) -> list[tuple[str, str]]:
    """Return the field violations of the error: each field, with the reason."""
    failure = refused(read, request)
    assert failure.code == "invalid_argument"
    (detail,) = failure.details
    assert isinstance(detail, BadRequest)
    return [(each.field, each.reason) for each in detail.field_violations]


def columns(message: Any) -> dict[str, Any]:
    """Return the fields of an order that is a message, as ``fields`` does of its row."""
    found = {}
    for each in message.desc().fields:
        value = getattr(message, each.name)
        if each.name in OPTIONAL and not message.has_field(each.name):
            value = None
        found[each.name] = value.to_datetime() if isinstance(value, Timestamp) else value
    return found


def fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an order, given its row."""
    published = {name: row[name] for name in row if name not in _INTERNAL}
    state = row["payment_state"] or StatusWords.builtin().state(row["payment_status"])
    return published | {"payment_state": state, "etag": f"{row['payment_version'] or 0:x}"}


def state(message: PaymentState) -> dict[str, str | None]:
    return {
        name: getattr(message, name) if message.has_field(name) else None
        for name in PAYMENT_COLUMNS
    }


def time(moment: datetime) -> Timestamp:
    return Timestamp.from_datetime(moment)


def ids(response: Any) -> list[int]:
    return [each.id for each in response.orders]


def pages(read: Call, request: Any, sizes: Sequence[int]) -> Iterator[Any]:
    """Yield all pages of a list; the page sizes are those of ``sizes``, repeated."""
    for size in itertools.cycle(sizes):
        request.page_size = size
        response = read(request)
        yield response
        request.page_token = response.next_page_token
        if not request.page_token:
            return


def find(field: str, value: str, **provider: str) -> FindOrderByPaymentRequest:
    reference: Any = Oneof(field, value)
    return FindOrderByPaymentRequest(reference=reference, **provider)


def lists() -> list[Any]:
    """One request for each method that has pages."""
    return [
        ListOrdersRequest(),
        ListStuckPaymentsRequest(older_than=Duration(seconds=1)),
        ListOrderPaymentEventsRequest(order_id=1),
        ListRefusedPaymentEventsRequest(),
    ]
