"""Shared by the tests of the methods that read: requests, and conversions of responses."""

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from protobuf import Message, Oneof
from protobuf.wkt import Duration, Timestamp

from persistence.models import PAYMENT_COLUMNS
from persistence.models import Order as Record
from server.gen.google.rpc.error_details_pb import BadRequest
from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    ListOrderPaymentEventsRequest,
    ListOrdersRequest,
    ListStuckPaymentsRequest,
    PaymentState,
)
from tests.support.callers import Call, Failure

NOBODY: Final = 2**63 - 1
"""An id that no buyer, storefront or order has."""
REFERENCES: Final = (
    "payment_session_id",
    "payment_intent_id",
    "payment_transaction_id",
    "payment_idempotency_key",
)
OPTIONAL: Final = ("payment_provider", *REFERENCES)
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
    """Return the values of an order, by column of its row."""
    found = {name: getattr(message, name) for name in Record._fields}
    absent = {name: None for name in OPTIONAL if not message.has_field(name)}
    times = {name: found[name].to_datetime() for name in ("created_at", "updated_at")}
    return found | absent | times


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
    ]
