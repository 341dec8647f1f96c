"""Times in requests: nanos that only the binary format can express, and milliseconds."""

from datetime import UTC, datetime
from typing import Any

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf.wkt import Timestamp

from server.gen.listings.v1.orders_pb import (
    ListOrdersRequest,
    ListRefusedPaymentEventsRequest,
    UpdateOrderPaymentRequest,
)
from server.rpc.interceptors.validation import validate


@pytest.mark.parametrize("nanos", [-1, 10**9])
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (UpdateOrderPaymentRequest, "payment_event_time"),
        (ListOrdersRequest, "created_from"),
        (ListOrdersRequest, "created_before"),
        (ListRefusedPaymentEventsRequest, "refused_from"),
        (ListRefusedPaymentEventsRequest, "refused_before"),
    ],
)
def test_nanos_that_json_cannot_express(kind: Any, field: str, nanos: int) -> None:
    given = kind(**{field: Timestamp(seconds=3_600, nanos=nanos)})
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
