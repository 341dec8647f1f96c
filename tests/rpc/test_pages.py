"""Pages of lists, their sizes and their tokens, over every protocol."""

import base64
import itertools
from typing import Any

import psycopg
from protobuf.wkt import Duration

from server.gen.listings.v1.orders_pb import (
    ListOrderPaymentEventsRequest,
    ListOrdersRequest,
    ListStuckPaymentsRequest,
)
from tests.support.callers import Call, grpcio
from tests.support.orders import Orders
from tests.support.reading import (
    LONG_AGO,
    SECOND,
    broken_rules,
    ids,
    lists,
    pages,
    time,
)
from tests.support.service import Service


def test_pages_of_any_size_make_up_the_list(read: Call, orders: Orders, number: int) -> None:
    added = [
        orders.add(storefront_id=number, created_at=LONG_AGO + each // 3 * SECOND)
        for each in range(8)
    ]
    for sizes in ([1], [2], [3], [7], [8], [9], [1, 3], [0], [5, 2**31 - 1]):
        found = list(pages(read, ListOrdersRequest(storefront_id=number), sizes))

        assert [each for page in found for each in ids(page)] == added[::-1]
        assert all(len(ids(page)) == size for page, size in zip(found[:-1], itertools.cycle(sizes)))
        assert ids(found[-1])


def test_orders_added_between_pages(read: Call, orders: Orders, number: int) -> None:
    """A newer order shifts no page; an order that belongs on a later page is on it."""

    def add(second: int) -> int:
        return orders.add(storefront_id=number, created_at=LONG_AGO + second * SECOND)

    oldest, older, newer, newest = (add(second) for second in (0, 2, 4, 6))
    walk = pages(read, ListOrdersRequest(storefront_id=number), [2])
    assert ids(next(walk)) == [newest, newer]
    add(7)
    add(5)
    late = add(1)

    assert [each for page in walk for each in ids(page)] == [older, late, oldest]


def test_page_size_is_defaulted_and_capped(running: Service, orders: Orders, number: int) -> None:
    """Over one protocol only, because adding and sending a thousand orders is slow."""
    with psycopg.connect(orders.url) as connection:
        connection.execute(
            "INSERT INTO orders (order_number, buyer_id, storefront_id, currency, subtotal_amount,"
            " total_amount) SELECT 'S-' || n, 1, %s, 'EUR', 1, 1 FROM generate_series(1, 1005) n",
            (number,),
        )
    with grpcio(running.base_url) as read:
        sizes = [
            len(ids(read(ListOrdersRequest(storefront_id=number, page_size=size))))
            for size in (0, 1, 999, 1_000, 1_001, 2**31 - 1)
        ]
        walk = pages(read, ListOrdersRequest(storefront_id=number), [2_000])
        lengths = [len(ids(page)) for page in walk]

    assert sizes == [50, 1, 999, 1_000, 1_000, 1_000]
    assert lengths == [1_000, 5]


def test_a_negative_page_size_is_invalid(read: Call) -> None:
    for size in (-1, -(2**31)):
        for request in lists():
            request.page_size = size
            assert broken_rules(read, request) == [("page_size", "INT32_GTE")]


def test_a_malformed_page_token_is_invalid(read: Call) -> None:
    zeros = base64.b64encode(bytes(24)).decode()
    for token in ("x", "====", "ü", "\0", "a b", zeros, "A" * 1_000):
        for request in lists():
            request.page_token = token
            assert broken_rules(read, request) == [("page_token", "PAGE_TOKEN_INVALID")]


def test_a_page_token_that_is_too_long_is_invalid(read: Call) -> None:
    for request in lists():
        request.page_token = "A" * 1_001
        assert broken_rules(read, request) == [("page_token", "STRING_MAX_LEN")]


def test_a_page_token_of_another_list_is_invalid(read: Call, orders: Orders, number: int) -> None:
    for _ in range(2):
        order_id = orders.add(
            storefront_id=number,
            payment_provider=f"p{number}",
            created_at=LONG_AGO,
            payment_status_since=LONG_AGO,
        )
    orders.change(order_id, payment_session_id="cs")
    hour = Duration(seconds=3_600)
    provider = f"p{number}"
    same: list[Any] = [
        ListOrdersRequest(storefront_id=number, page_size=1),
        ListOrdersRequest(storefront_id=number, payment_provider=provider, page_size=1),
        ListStuckPaymentsRequest(older_than=hour, payment_provider=provider, page_size=1),
        ListOrderPaymentEventsRequest(order_id=order_id, page_size=1),
    ]
    tokens = [read(each).next_page_token for each in same]
    assert all(tokens)
    others: list[Any] = [
        *same,
        ListOrdersRequest(),
        ListOrdersRequest(storefront_id=number, created_from=time(LONG_AGO)),
        ListOrdersRequest(storefront_id=number, payment_statuses=["pending"]),
        ListStuckPaymentsRequest(older_than=Duration(seconds=3_601), payment_provider=provider),
        ListStuckPaymentsRequest(older_than=hour),
        ListOrderPaymentEventsRequest(order_id=order_id - 1),
    ]

    for (place, token), (other_place, other) in itertools.product(
        enumerate(tokens), enumerate(others)
    ):
        other.page_token = token
        if place == other_place:
            assert read(other).next_page_token == ""
        else:
            assert broken_rules(read, other) == [("page_token", "PAGE_TOKEN_INVALID")]
