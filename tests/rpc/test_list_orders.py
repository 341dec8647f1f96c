"""Lists of orders: filters and time ranges, over every protocol."""

from datetime import UTC, datetime, timedelta
from itertools import chain, combinations
from typing import Any, Final

import psycopg
import pytest
from protobuf.wkt import Timestamp

from server.gen.listings.v1.orders_pb import ListOrdersRequest, Order
from tests.support.callers import Call
from tests.support.orders import Orders
from tests.support.reading import LONG_AGO, MICROSECOND, SECOND, broken_rules, ids, pages, time


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

        assert ids(response) == [
            row["id"]
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


def test_words_are_compared_as_they_are_spelled(read: Call, orders: Orders, number: int) -> None:
    has = {"payment_provider": "Stripe", "payment_status": "Paid"}
    order_id = orders.add(storefront_id=number, **has)
    for field, spelled in has.items():
        for value, found in ((spelled, [order_id]), (spelled.lower(), [])):
            filters: list[dict[str, Any]] = [{field: value}]
            if field == "payment_status":
                filters.append({"payment_statuses": [value]})
            for given in filters:
                assert ids(read(ListOrdersRequest(storefront_id=number, **given))) == found


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


def test_states(read: Call, orders: Orders, number: int) -> None:
    """Those of the column; where it is null, those of the word, in any spelling."""
    rows: Any = {
        "untouched": {},
        "pending": {"payment_state": 2},
        "open": {"payment_status": "open", "payment_state": 2},
        "by hand": {"payment_status": " OP-en"},
        "paid": {"payment_status": "paid", "payment_state": 9},
        "paid by hand": {"payment_status": "Suc_ceeded"},
        "dispute won": {"payment_status": "dispute_won", "payment_state": 11},
        "refunded": {"payment_status": "refunded", "payment_state": 11},
        "unknown": {"payment_status": "piad", "payment_state": 1},
        "unknown by hand": {"payment_status": "piad"},
    }
    made = {orders.add(storefront_id=number, **row): name for name, row in rows.items()}
    state = Order.PaymentState

    def listed(*states: Order.PaymentState) -> list[str]:
        wanted = ListOrdersRequest(storefront_id=number, payment_states=[*states])
        everything = [each for page in pages(read, wanted, [2, 1]) for each in page.orders]
        assert {each.payment_state for each in everything} <= set(states)
        return [made[each.id] for each in everything][::-1]

    pending = ["untouched", "pending", "open", "by hand"]
    assert listed(state.PENDING) == pending
    assert listed(state.PAID) == ["paid", "paid by hand"]
    assert listed(state.REFUNDED) == ["dispute won", "refunded"]
    assert listed(state.UNKNOWN) == ["unknown", "unknown by hand"]
    assert listed(state.UNKNOWN, state.PENDING) == [*pending, "unknown", "unknown by hand"]
    assert listed(state.DISPUTED, state.RETURNED) == []
    assert listed(*list(state)[1:]) == list(rows)


def test_statuses(read: Call, orders: Orders, number: int) -> None:
    """As they are spelled, and any of them."""
    statuses = ("paid", "Paid", f"a{number}", "paid")
    made = [orders.add(storefront_id=number, payment_status=each) for each in statuses]

    def listed(*statuses: str, **further: Any) -> list[int]:
        wanted = ListOrdersRequest(storefront_id=number, payment_statuses=[*statuses], **further)
        return [each for page in pages(read, wanted, [2]) for each in ids(page)][::-1]

    assert listed("paid") == [made[0], made[3]]
    assert listed(f"a{number}", "Paid") == made[1:3]
    assert listed("failed", "Paid", "paid", payment_status="paid") == [made[0], made[3]]
    assert listed("Paid", payment_states=[Order.PaymentState.PAID]) == [made[1]]
    assert listed("Paid", payment_states=[Order.PaymentState.FAILED]) == []


def test_an_order_by_its_number(read: Call, orders: Orders, number: int) -> None:
    order_id = orders.add(order_number=f"N-{number}", status="shipped")
    orders.add(order_number=f"N-{number}-2")

    def listed(**filters: Any) -> list[int]:
        return ids(read(ListOrdersRequest(order_number=f"N-{number}", **filters)))

    assert listed() == [order_id]
    assert listed(order_status="shipped", payment_statuses=["pending", "paid"]) == [order_id]
    assert listed(order_status="delivered") == []
    assert listed(payment_states=[Order.PaymentState.PAID]) == []
    assert ids(read(ListOrdersRequest(order_number=f"n-{number}"))) == []


def test_the_status_of_the_order(read: Call, orders: Orders, number: int) -> None:
    shipped = orders.add(storefront_id=number, status="shipped", created_at=LONG_AGO)
    orders.add(storefront_id=number, status="pending", created_at=LONG_AGO)
    orders.add(storefront_id=number, status="shipped", created_at=LONG_AGO - SECOND)
    filters: Any = {"storefront_id": number, "order_status": "shipped"}

    assert ids(read(ListOrdersRequest(created_from=time(LONG_AGO), **filters))) == [shipped]
    alone = ListOrdersRequest(created_before=time(LONG_AGO), **filters)
    assert broken_rules(read, alone) == [("", "ORDER_STATUS_WITHIN_TIME")]


AMOUNTS: Final[list[tuple[int, int | None, int | None, bool]]] = [
    # state, captured, refunded of a total of 11,983; whether they disagree
    (9, None, None, False),
    (9, 11_983, None, False),
    (9, 11_982, None, True),
    (9, 11_984, None, True),
    (9, 11_983, 11_984, True),
    (9, 11_983, 0, False),
    (9, 11_983, 5, True),
    (9, None, 5, True),
    (9, None, 0, False),
    (11, 5_000, 5_000, False),
    (11, 5_000, 4_999, True),
    (11, None, 5_000, False),
    (11, 5_000, None, False),
    (10, 5_000, 4_999, False),
    (10, 5_000, 5_000, True),
    (10, 5_000, 0, True),
    (10, None, 0, True),
    (10, None, 1, False),
    (4, 1, None, False),
    (4, 11_984, None, True),
    (13, 1, 2, True),
]
A_WORD: Final = {9: "Paid", 11: "REFUNDED", 10: "partially-refunded", 4: "processing", 13: "lost"}


def test_amounts_that_disagree(read: Call, orders: Orders, number: int) -> None:
    """By the state, and where that is null, by the word's."""
    disagree = []
    for state, captured, refunded, expected in AMOUNTS:
        amounts = {"captured_amount": captured, "refunded_amount": refunded}
        known = {"payment_status": "piad", "payment_state": state}
        for payment in (known, {"payment_status": A_WORD[state]}):
            order_id = orders.add(storefront_id=number, **payment, **amounts)
            disagree += [order_id] * expected

    def listed(**filters: Any) -> list[int]:
        wanted = ListOrdersRequest(storefront_id=number, amounts_disagree=True, **filters)
        return [each for page in pages(read, wanted, [3]) for each in ids(page)][::-1]

    assert listed() == disagree
    assert listed(payment_statuses=["piad"]) == disagree[::2]
    states = [Order.PaymentState.PAID, Order.PaymentState.CHARGED_BACK]
    assert listed(payment_states=states) == disagree[:10] + disagree[-2:]
    assert len(ids(read(ListOrdersRequest(storefront_id=number)))) == 2 * len(AMOUNTS)


@pytest.mark.parametrize(
    ("filters", "rule"),
    [
        ({"payment_states": [9, 9]}, ("payment_states", "REPEATED_UNIQUE")),
        ({"payment_states": [0]}, ("payment_states", "ENUM_NOT_IN")),
        ({"payment_states": [15]}, ("payment_states", "ENUM_DEFINED_ONLY")),
        ({"payment_statuses": ["a", "a"]}, ("payment_statuses", "REPEATED_UNIQUE")),
        ({"payment_statuses": ["a", ""]}, ("payment_statuses", "STRING_MIN_LEN")),
        (
            {"payment_statuses": list(map(str, range(21)))},
            ("payment_statuses", "REPEATED_MAX_ITEMS"),
        ),
        ({"order_number": ""}, ("order_number", "STRING_MIN_LEN")),
    ],
)
def test_invalid_filters(read: Call, filters: Any, rule: tuple[str, str]) -> None:
    assert broken_rules(read, ListOrdersRequest(**filters)) == [rule]
