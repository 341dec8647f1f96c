"""ListStuckPayments, over every protocol."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from protobuf.wkt import Duration

from server.gen.listings.v1.orders_pb import ListStuckPaymentsRequest
from tests.support.callers import Call
from tests.support.orders import Orders
from tests.support.reading import LONG_AGO, SECOND, broken_rules, columns, ids, pages

OPEN: Final = ("pending", "processing", "requires_action", "authorized")
OTHERS: Final = ("failed", "cancelled", "expired", "paid", "refunded", "disputed", "prepared")


def test_stuck_payments(read: Call, orders: Orders, number: int) -> None:
    """Open payments with a provider, not changed recently: oldest first, then by id."""
    then = {"created_at": LONG_AGO, "updated_at": LONG_AGO + SECOND}
    provider: Any = {"payment_provider": f"p{number}"}
    same_age = [orders.add(payment_status=each, **provider, **then) for each in OPEN]
    oldest = orders.add(**provider, created_at=LONG_AGO - SECOND, updated_at=LONG_AGO)
    for status in OTHERS:
        orders.add(payment_status=status, **provider, **then)
    orders.add(**provider, created_at=LONG_AGO)  # updated_at is now
    without = orders.add(payment_session_id="cs", **then)
    other = orders.add(payment_provider=f"other {number}", **then)
    day = Duration(seconds=86_400)

    response = read(ListStuckPaymentsRequest(older_than=day, **provider))

    assert ids(response) == [oldest, *same_age]
    assert list(map(columns, response.orders)) == [orders.row(each) for each in ids(response)]
    everything = pages(read, ListStuckPaymentsRequest(older_than=day), [1_000])
    found = [each for page in everything for each in ids(page)]
    assert [each for each in found if each >= same_age[0]] == [oldest, *same_age, other]
    assert without not in found


def test_older_than_selects_by_the_last_change(read: Call, orders: Orders, number: int) -> None:
    now = datetime.now(UTC)
    provider: Any = {"payment_provider": f"p{number}"}
    created = {"created_at": now - timedelta(days=9)}
    fresh = orders.add(**created, **provider, updated_at=now)
    hour = orders.add(**created, **provider, updated_at=now - timedelta(hours=1))

    def stuck(**older_than: int) -> list[int]:
        return ids(read(ListStuckPaymentsRequest(older_than=Duration(**older_than), **provider)))

    assert stuck() == [fresh, hour]
    assert stuck(seconds=3_000) == [hour]
    assert stuck(seconds=3_600 * 2) == []


def test_pages_of_stuck_payments(read: Call, orders: Orders, number: int) -> None:
    provider: Any = {"payment_provider": f"p{number}"}
    added = [
        orders.add(**provider, created_at=LONG_AGO + each // 3 * SECOND, updated_at=LONG_AGO)
        for each in range(7)
    ]
    for sizes in ([1], [3], [7], [2, 4], [0]):
        request = ListStuckPaymentsRequest(older_than=Duration(seconds=60), **provider)
        found = [each for page in pages(read, request, sizes) for each in ids(page)]
        assert found == added


@pytest.mark.parametrize(
    ("older_than", "reason"),
    [
        (None, "REQUIRED"),
        (Duration(seconds=-1), "DURATION_GTE_LTE"),
        (Duration(nanos=-1), "DURATION_GTE_LTE"),
        (Duration(seconds=315_360_000, nanos=1), "DURATION_GTE_LTE"),
    ],
)
def test_an_invalid_older_than(read: Call, older_than: Duration | None, reason: str) -> None:
    request = ListStuckPaymentsRequest(older_than=older_than)

    assert broken_rules(read, request) == [("older_than", reason)]
