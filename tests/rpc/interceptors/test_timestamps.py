"""Timestamps that only the binary format can express: each one in a request is checked."""

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


@pytest.mark.parametrize(
    "time",
    [
        Timestamp(seconds=1, nanos=-1),
        Timestamp(seconds=1, nanos=10**9),
        Timestamp(seconds=-62_135_596_801),
        Timestamp(seconds=253_402_300_800),
    ],
    ids=repr,
)
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
def test_a_time_that_json_cannot_express(kind: Any, field: str, time: Timestamp) -> None:
    request = kind.from_binary(kind(**{field: time}).to_binary())
    with pytest.raises(ConnectError, match=f"{field} must be from 0001") as caught:
        validate(request)
    assert caught.value.code is Code.INVALID_ARGUMENT
