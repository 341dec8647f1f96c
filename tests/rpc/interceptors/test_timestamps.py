"""Times in requests: nanos that only the binary format can express, and milliseconds."""

from datetime import UTC, datetime
from typing import Any

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf.wkt import Duration, Timestamp

from server.gen.listings.v1.orders_pb import (
    ListOrdersRequest,
    ListRefusedPaymentEventsRequest,
    ListStuckPaymentsRequest,
    UpdateOrderPaymentRequest,
)
from server.rpc.interceptors.validation import validate


@pytest.mark.parametrize("nanos", [-1, 10**9])
@pytest.mark.parametrize(
    ("kind", "field", "time"),
    [
        (UpdateOrderPaymentRequest, "payment_event_time", Timestamp),
        (ListOrdersRequest, "created_from", Timestamp),
        (ListOrdersRequest, "created_before", Timestamp),
        (ListRefusedPaymentEventsRequest, "refused_from", Timestamp),
        (ListRefusedPaymentEventsRequest, "refused_before", Timestamp),
        (ListStuckPaymentsRequest, "older_than", Duration),
    ],
)
def test_nanos_that_json_cannot_express(kind: Any, field: str, time: Any, nanos: int) -> None:
    given = kind(**{field: time(seconds=3_600, nanos=nanos)})
    with pytest.raises(ConnectError, match=f"{field} must have nanos from 0") as caught:
        validate(kind.from_binary(given.to_binary()))
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_milliseconds_that_are_sent_as_seconds() -> None:
    milliseconds = int(datetime.now(UTC).timestamp() * 1_000)
    request = UpdateOrderPaymentRequest(
        order_id=1, payment_status="paid", payment_event_time=Timestamp(seconds=milliseconds)
    )
    with pytest.raises(ConnectError, match="is it in seconds"):
        validate(request)
