"""Hostile texts are stored unchanged or rejected, over every protocol."""

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import pytest
from protobuf import DescMessage

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrdersRequest,
    UpdateOrderPaymentRequest,
)
from tests.support import exchange
from tests.support.callers import Call
from tests.support.hostile import LONGEST_CHARACTER, STORABLE, SURROGATE_BYTES
from tests.support.hostile_requests import METHODS, name, protocols, string_fields
from tests.support.orders import Orders
from tests.support.reading import REFERENCES, broken_rules, find, ids
from tests.support.requests import UNARY, Protocol
from tests.support.service import Service
from tests.support.strategies import LIMITS
from tests.support.updates import derived, update

FILTERS: Final = ("payment_provider", "payment_status")


def texts(field: str) -> dict[str, str]:
    """Valid texts of a field, by what is special about them."""
    limit = LIMITS[field]
    return STORABLE | {
        "longest": LONGEST_CHARACTER * limit,
        "longest-of-marks": "e" + "\u0301" * (limit - 1),
    }


def bad_texts(field: str) -> dict[str, tuple[str, str]]:
    """Invalid texts of a field, and the rule that each breaks."""
    limit = LIMITS[field]
    return {
        "nothing": ("", "STRING_MIN_LEN"),
        "nul": ("\0", "STRING_NOT_CONTAINS"),
        "nul-within": ("paid\0paid", "STRING_NOT_CONTAINS"),
        "too-long": (LONGEST_CHARACTER * (limit + 1), "STRING_MAX_LEN"),
        "too-long-of-marks": ("e" + "\u0301" * limit, "STRING_MAX_LEN"),
    }


def own(order_id: int, field: str, text: str) -> str:
    """Make an idempotency key unique to the order, in the longest characters of UTF-8.

    The number of digits is fixed, because the text that follows may begin with such digits.
    """
    if field != "payment_idempotency_key":
        return text
    digits = "".join(chr(ord(LONGEST_CHARACTER) + int(digit)) for digit in f"{order_id:019}")
    return (digits + text)[: LIMITS[field]]


def with_lone_surrogates(
    protocol: Protocol, message: DescMessage, order_id: int
) -> Iterator[bytes]:
    """Messages with a lone surrogate in one text: as a JSON escape, and encoded as by UTF-8."""
    has_order = any(field.name == "order_id" for field in message.fields)
    for field in string_fields(message):
        if protocol.is_json:
            order = b'"orderId": %d, ' % order_id if has_order else b""
            for half in (rb"\ud800", rb"\udfff\ud800", SURROGATE_BYTES):
                yield b'{%s"%s": "paid%s"}' % (order, field.json_name.encode(), half)
        else:
            order = UpdateOrderPaymentRequest(order_id=order_id).to_binary() if has_order else b""
            yield order + bytes([field.number << 3 | 2, len(SURROGATE_BYTES)]) + SURROGATE_BYTES


@pytest.mark.parametrize("field", LIMITS)
def test_texts_are_stored_unchanged(call: Call, orders: Orders, field: str) -> None:
    for what, text in texts(field).items():
        order_id = orders.add()
        before, value = orders.row(order_id), own(order_id, field, text)

        response = call(update(order_id, **{field: value}))

        after = orders.row(order_id)
        assert after == before | {field: value} | derived(after), what
        assert getattr(response.order, field) == value, what
        assert call(GetOrderRequest(order_id=order_id)).order == response.order, what


@pytest.mark.parametrize("field", LIMITS)
def test_invalid_texts_are_rejected(call: Call, orders: Orders, field: str) -> None:
    order_id = orders.add()
    before = orders.row(order_id)
    for what, (text, rule) in bad_texts(field).items():
        request = update(order_id, **{field: text})

        assert broken_rules(call, request) == [(field, rule)], what
        assert orders.row(order_id) == before, what


@pytest.mark.parametrize("field", REFERENCES)
def test_an_order_is_found_by_any_text(read: Call, orders: Orders, number: int, field: str) -> None:
    for what, text in texts(field).items():
        order_id = orders.add(payment_provider=f"{number}")
        value = own(order_id, field, text)
        orders.change(order_id, **{field: value})

        found = read(find(field, value, payment_provider=f"{number}")).order

        assert (found.id, getattr(found, field)) == (order_id, value), what
    for what, (text, rule) in bad_texts(field).items():
        assert broken_rules(read, find(field, text)) == [(field, rule)], what


@pytest.mark.parametrize("field", FILTERS)
def test_orders_are_listed_by_any_text(read: Call, orders: Orders, number: int, field: str) -> None:
    def wanted(text: str) -> ListOrdersRequest:
        filters: dict[str, Any] = {"storefront_id": number, field: text}
        return ListOrdersRequest(**filters)

    for what, text in texts(field).items():
        order_id = orders.add(storefront_id=number, **{field: text})
        assert ids(read(wanted(text))) == [order_id], what
    for what, (text, rule) in bad_texts(field).items():
        assert broken_rules(read, wanted(text)) == [(field, rule)], what


@pytest.mark.parametrize("protocol", UNARY, ids=lambda protocol: protocol.name)
def test_lone_surrogates_are_rejected(running: Service, orders: Orders, protocol: Protocol) -> None:
    order_id = orders.add()
    before = orders.row(order_id)
    requests = [
        protocol.request(name(method), message)
        for method in METHODS
        if protocol in protocols(method) and (method.idempotency or not protocol.is_get)
        for message in with_lone_surrogates(protocol, method.input, order_id)
    ]

    codes = asyncio.run(exchange.send(running, requests))

    assert set(codes) == {"invalid_argument"}
    assert orders.row(order_id) == before
