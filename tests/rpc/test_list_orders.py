"""Lists of orders: filters and time ranges, over every protocol."""

from datetime import UTC, datetime, timedelta
from itertools import chain, combinations
from typing import Any

import psycopg
import pytest
from protobuf.wkt import Timestamp

from server.gen.listings.v1.orders_pb import ListOrdersRequest
from tests.support.callers import Call
from tests.support.orders import Orders
from tests.support.reading import LONG_AGO, MICROSECOND, SECOND, broken_rules, columns, ids, time


def test_lists_with_every_set_of_filters(read: Call, orders: Orders, number: int) -> None:
    """One storefront's orders, against the same filters in Python; newest first."""
    for each in range(24):
        orders.add(
            storefront_id=number,
            buyer_id=number + each % 2,
            payment_status=("paid", "failed", "pending")[each % 3],
            payment_provider=(None, "stripe", "cash", "stripe")[each % 4],
            created_at=LONG_AGO + each // 5 * SECOND,  # five at a time
        )
    rows = list_by_hand(orders, number)
    assert len(rows) == 24
    filters: dict[str, Any] = {
        "payment_status": "paid",
        "payment_provider": "stripe",
        "buyer_id": number,
        "created_from": LONG_AGO + SECOND,
        "created_before": LONG_AGO + 4 * SECOND,
    }
    every = (combinations(filters, size) for size in range(len(filters) + 1))
    for names in chain.from_iterable(every):
        given = {name: filters[name] for name in names}
        times: Any = {name: time(given.pop(name)) for name in names if name.startswith("created")}

        response = read(ListOrdersRequest(storefront_id=number, **given, **times))

        assert list(map(columns, response.orders)) == [
            row
            for row in rows
            if given.items() <= row.items()
            and ("created_from" not in names or row["created_at"] >= filters["created_from"])
            and ("created_before" not in names or row["created_at"] < filters["created_before"])
        ]
        assert response.next_page_token == ""


def list_by_hand(orders: Orders, storefront_id: int) -> list[dict[str, Any]]:
    with psycopg.connect(orders.url) as connection:
        found = connection.execute(
            "SELECT id FROM orders WHERE storefront_id = %s", (storefront_id,)
        ).fetchall()
    rows = [orders.row(order_id) for (order_id,) in found]
    return sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=True)


def test_a_list_with_one_filter(read: Call, orders: Orders, number: int) -> None:
    filters: dict[str, Any] = {
        "buyer_id": number,
        "payment_status": f"s{number}",
        "payment_provider": f"p{number}",
    }
    for name, value in filters.items():
        added = [orders.add(**{name: value}) for _ in range(3)]
        orders.add()

        assert ids(read(ListOrdersRequest(**{name: value}))) == added[::-1]


def test_a_list_without_filters(read: Call, orders: Orders, number: int) -> None:
    late = datetime(2200, 1, 1, tzinfo=UTC) + number * SECOND
    added = [orders.add(created_at=late) for _ in range(3)]

    assert ids(read(ListOrdersRequest(page_size=3))) == added[::-1]


def test_an_empty_list(read: Call, number: int) -> None:
    response = read(ListOrdersRequest(storefront_id=number))

    assert (list(response.orders), response.next_page_token) == ([], "")


def test_the_time_range_includes_its_start_and_excludes_its_end(
    read: Call, orders: Orders, number: int
) -> None:
    moments = [LONG_AGO - MICROSECOND, LONG_AGO, LONG_AGO + MICROSECOND]
    before, at, after = (orders.add(storefront_id=number, created_at=each) for each in moments)

    def listed(**times: datetime) -> list[int]:
        given: dict[str, Any] = {name: time(each) for name, each in times.items()}
        return ids(read(ListOrdersRequest(storefront_id=number, **given)))

    assert listed(created_from=LONG_AGO) == [after, at]
    assert listed(created_before=LONG_AGO) == [before]
    assert listed(created_from=LONG_AGO, created_before=LONG_AGO + MICROSECOND) == [at]
    assert listed(
        created_from=datetime.min.replace(tzinfo=UTC),
        created_before=datetime.max.replace(tzinfo=UTC),
    ) == [after, at, before]


def test_a_time_range_that_begins_or_ends_between_microseconds(
    read: Call, orders: Orders, number: int
) -> None:
    order_id = orders.add(storefront_id=number, created_at=LONG_AGO)
    just_after = Timestamp(seconds=time(LONG_AGO).seconds, nanos=1)

    before = read(ListOrdersRequest(storefront_id=number, created_before=just_after))
    since = read(ListOrdersRequest(storefront_id=number, created_from=just_after))

    assert (ids(before), ids(since)) == ([order_id], [])


def test_the_latest_timestamp(read: Call, orders: Orders, number: int) -> None:
    order_id = orders.add(storefront_id=number, created_at=LONG_AGO)
    last = Timestamp(seconds=253_402_300_799, nanos=999_999_999)

    before = read(ListOrdersRequest(storefront_id=number, created_before=last))
    since = read(ListOrdersRequest(storefront_id=number, created_from=last))

    assert (ids(before), ids(since)) == ([order_id], [])


@pytest.mark.parametrize("length", [timedelta(0), -MICROSECOND])
def test_a_time_range_must_not_be_empty(read: Call, length: timedelta) -> None:
    request = ListOrdersRequest(created_from=time(LONG_AGO), created_before=time(LONG_AGO + length))

    assert broken_rules(read, request) == [("", "TIME_RANGE_BEGINS_BEFORE_IT_ENDS")]
