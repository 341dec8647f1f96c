"""Property tests of the strict JSON codec."""

import json
from decimal import Decimal
from typing import Any

import pytest
from connectrpc.errors import ConnectError
from hypothesis import given
from hypothesis import strategies as st

from server.gen.listings.v1.orders_pb import (
    Order,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from server.rpc.json_codec import StrictJSONCodec
from tests.support import strategies

codec = StrictJSONCodec()

nested = st.recursive(
    st.none() | st.text() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


def wrapped(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def depth(value: Any) -> int:
    match value:
        case list():
            return 1 + max(map(depth, value), default=0)
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
    return 0


@given(strategies.payments, st.integers(1, 2**63 - 1))
def test_json_written_by_protobuf_is_read(payment: dict[str, Any], order_id: int) -> None:
    request = UpdateOrderPaymentRequest(order_id=order_id, **payment)
    assert codec.decode(request.to_json().encode(), UpdateOrderPaymentRequest) == request
    assert codec.decode(codec.encode(request), UpdateOrderPaymentRequest) == request


@given(nested, st.integers(80, 120), st.booleans())
def test_nesting_of_more_than_100_levels_is_rejected(
    value: Any, levels: int, ascii_only: bool
) -> None:
    value = wrapped(value, levels)
    body = json.dumps({"nope": value}, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    with pytest.raises(ConnectError) as caught:
        codec.decode(body, UpdateOrderPaymentRequest)
    too_deep = depth(value) + 1 > 100
    assert ("nested more than" in caught.value.message) is too_deep


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_invalid_argument(body: bytes) -> None:
    try:
        codec.decode(body, UpdateOrderPaymentRequest)
    except ConnectError as error:
        assert error.code.value == "invalid_argument"
        error.message.encode()


@given(nested)
def test_any_json_is_decoded_or_invalid_argument(value: Any) -> None:
    try:
        codec.decode(json.dumps(value).encode(), UpdateOrderPaymentRequest)
    except ConnectError as error:
        assert error.code.value == "invalid_argument"
        error.message.encode()


@given(
    st.builds("{}.{}e{}".format, st.integers(0, 2**54), st.integers(0, 10**20), st.integers(-9, 9))
    | st.decimals(allow_nan=False, allow_infinity=False).map(str)
    | st.integers().map(str),
    st.booleans(),
)
def test_numbers_are_not_rounded(text: str, quoted: bool) -> None:
    spelled = f'"{text}"' if quoted else text
    try:
        read = codec.decode(b'{"orderId": %s}' % spelled.encode(), UpdateOrderPaymentRequest)
    except ConnectError as error:
        assert error.code.value == "invalid_argument"
    else:
        assert read.order_id == Decimal(text)


@pytest.mark.parametrize("order_id", ['"1_0"', "1.5", "null", '"x"', "true", "1e400"])
def test_numbers_in_a_list_are_checked_too(order_id: str) -> None:
    with pytest.raises(ConnectError, match=r"orderIds\[1\]: expected an integer"):
        codec.decode(b'{"orderIds": [7, %s]}' % order_id.encode(), WatchOrderPaymentsRequest)


def test_a_response_round_trips() -> None:
    order = Order(id=7, currency="EUR", total_amount=2**53 + 1)
    assert codec.decode(codec.encode(order), Order) == order


def test_the_error_for_a_long_unknown_name_is_short() -> None:
    with pytest.raises(ConnectError) as caught:
        codec.decode(b'{"%s": 1}' % (b"x" * 60_000), UpdateOrderPaymentRequest)

    (detail,) = caught.value.details
    assert len(caught.value.message) + len(detail.message_bytes) < 1_000
    assert "the fields are order_id" in caught.value.message
