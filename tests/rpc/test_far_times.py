"""Times before year 1, after 9999 or infinite, in any column: read, listed and updated."""

import itertools
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protobuf.wkt import Duration

from persistence.status_words import StatusWords
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    ListOrderPaymentsRequest,
    ListOrdersRequest,
    ListRefusedPaymentEventsRequest,
    ListStuckPaymentsRequest,
    Order,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import far_times, service
from tests.support.callers import READERS, Call
from tests.support.far_times import moments, shown, text
from tests.support.orders import Orders
from tests.support.reading import find, pages, time
from tests.support.service import Service
from tests.support.updates import refusal
from tests.support.watchers import WATCHERS

OF_ORDER: Final = ("created_at", "updated_at", "payment_event_time", "payment_status_since")
OF_EVENT: Final = ("created_at", "payment_event_time")
OF_REFUSED: Final = (
    *("first_refused_at", "last_refused_at"),
    *("payment_event_time", "order_payment_event_time"),
)
Times = dict[str, int]
"""By column, in microseconds since 2000."""

_numbers = itertools.count(1)


def times(columns: Sequence[str]) -> st.SearchStrategy[list[Times]]:
    """Some rows, with one of a few times in each of the columns."""
    few = st.lists(moments, min_size=1, max_size=5)
    return few.flatmap(
        lambda found: st.lists(
            st.fixed_dictionaries(dict.fromkeys(columns, st.sampled_from(found))),
            min_size=1,
            max_size=6,
        )
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on a database whose orders may have any time, as before there were CHECKs."""
    log = tmp_path_factory.mktemp("service") / "log"
    with service.on_own_database(log) as running:
        with psycopg.connect(running.database_url) as connection:
            connection.execute(
                "ALTER TABLE orders DROP CONSTRAINT IF EXISTS orders_updated_at_in_range"
            )
        yield running


@pytest.fixture(scope="module")
def orders(running: Service) -> Orders:
    return Orders(running.database_url)


@pytest.fixture(scope="module", params=["grpcio", "connect-json-http1"])
def read(request: pytest.FixtureRequest, running: Service) -> Iterator[Call]:
    with READERS[request.param](running.base_url) as call:
        yield call


def insert(orders: Orders, table: str, rows: Sequence[Times], **values: object) -> list[int]:
    """Insert rows, and return their ids."""
    ids = []
    for row in rows:
        all_values = values | {name: text(moment) for name, moment in row.items()}
        names = ", ".join(all_values)
        with psycopg.connect(orders.url) as connection:
            found = connection.execute(
                f"INSERT INTO {table} ({names}) VALUES ({', '.join(['%s'] * len(all_values))})"
                " RETURNING id".encode(),
                list(all_values.values()),
            ).fetchone()
        assert found is not None
        ids.append(int(found[0]))
    return ids


def add_orders(orders: Orders, rows: Sequence[Times], **values: object) -> list[int]:
    return [
        orders.add(**{name: text(moment) for name, moment in row.items()}, **values) for row in rows
    ]


def sorted_ids(
    rows: Sequence[Times], ids: Sequence[int], by: str, *, newest_first: bool = True
) -> list[int]:
    found = sorted(zip((row[by] for row in rows), ids, strict=True), reverse=newest_first)
    return [id_ for _, id_ in found]


def listed(read: Call, request: Any, entries: str, sizes: Sequence[int]) -> list[Any]:
    return [each for page in pages(read, request, sizes) for each in getattr(page, entries)]


def of_times(message: Any, columns: Sequence[str]) -> dict[str, datetime]:
    return {name: getattr(message, name).to_datetime() for name in columns}


def all_shown(row: Times) -> dict[str, datetime]:
    return {name: shown(moment) for name, moment in row.items()}


sizes = st.lists(st.integers(1, 3), min_size=1, max_size=2)


@settings(max_examples=8, deadline=None)
@given(rows=times(OF_ORDER), sizes=sizes, limit=st.datetimes(timezones=st.just(UTC)))
def test_each_order_is_listed_once_read_and_updated(
    read: Call, orders: Orders, rows: list[Times], sizes: list[int], limit: datetime
) -> None:
    number = next(_numbers)
    filters: dict[str, Any] = {"buyer_id": number, "payment_provider": f"p{number}"}
    state = StatusWords.builtin().state("processing").value
    ids = add_orders(orders, rows, **filters, payment_status="processing", payment_state=state)
    newest_first = sorted_ids(rows, ids, "created_at")
    row_of = dict(zip(ids, rows, strict=True))
    microseconds = (limit - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    kinds: list[dict[str, Any]] = [{}, {"payment_states": [Order.PaymentState.PROCESSING]}]
    for more in kinds:
        found = listed(read, ListOrdersRequest(**filters, **more), "orders", sizes)
        assert [each.id for each in found] == newest_first
        assert [of_times(each, OF_ORDER) for each in found] == [
            all_shown(row_of[each]) for each in newest_first
        ]
    for name in ("created_from", "created_before"):
        within: dict[str, Any] = {name: time(limit)}
        request = ListOrdersRequest(**filters, **within)
        assert [each.id for each in listed(read, request, "orders", sizes)] == [
            each
            for each in newest_first
            if (row_of[each]["created_at"] >= microseconds) is (name == "created_from")
        ]
    now = (datetime.now(UTC) - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    stuck = ListStuckPaymentsRequest(older_than=Duration(), payment_provider=f"p{number}")
    assert [each.id for each in listed(read, stuck, "orders", sizes)] == [
        each
        for each in sorted_ids(rows, ids, "payment_status_since", newest_first=False)
        if row_of[each]["payment_status_since"] < now
    ]
    for order_id, row in row_of.items():
        read_order = read(GetOrderRequest(order_id=order_id)).order
        assert of_times(read_order, OF_ORDER) == all_shown(row)
        updated = read(
            UpdateOrderPaymentRequest(
                order_id=order_id, payment_status="paid", payment_intent_id=f"pi_{order_id}"
            )
        )
        assert updated.order.created_at == read_order.created_at
        moved = updated.order.updated_at.to_datetime()
        if row["updated_at"] < far_times.LAST_SHOWN:
            assert moved > shown(row["updated_at"])
        else:
            assert abs(moved - datetime.now(UTC)) < timedelta(minutes=1)
        assert read(find("payment_intent_id", f"pi_{order_id}")).order == updated.order


@settings(max_examples=8, deadline=None)
@given(rows=times(OF_EVENT), sizes=sizes)
def test_each_event_of_the_history_is_listed_once(
    read: Call, orders: Orders, rows: list[Times], sizes: list[int]
) -> None:
    order_id = orders.add()
    of_order = {"order_id": order_id, "storefront_id": 3}
    ids = insert(
        orders, "order_payment_events", rows, **of_order, payment_status_after="processing"
    )

    found = listed(read, ListOrderPaymentEventsRequest(order_id=order_id), "events", sizes)

    assert [each.id for each in found] == ids
    assert [of_times(each, OF_EVENT) for each in found] == list(map(all_shown, rows))
    (payment,) = read(ListOrderPaymentsRequest(order_id=order_id)).payments
    created = [shown(row["created_at"]) for row in rows]
    assert payment.first_event_at.to_datetime() == min(created)
    assert payment.last_event_at.to_datetime() == max(created)


@settings(max_examples=8, deadline=None)
@given(rows=times(OF_REFUSED), sizes=sizes)
def test_each_refused_event_is_listed_once(
    read: Call, orders: Orders, rows: list[Times], sizes: list[int]
) -> None:
    order_id = orders.add()
    ids = []
    for row in rows:
        ids += insert(
            orders,
            "refused_payment_events",
            [row],
            order_id=order_id,
            digest=uuid.uuid4(),
            written=False,
            tells_of_money=False,
            reason="PAYMENT_EVENT_LATE",
            payment_intent_id="pi_1",
            request_id="r",
        )
    row_of = dict(zip(ids, rows, strict=True))

    found = listed(read, ListRefusedPaymentEventsRequest(order_id=order_id), "events", sizes)

    assert [each.id for each in found] == sorted_ids(rows, ids, "first_refused_at")
    assert [of_times(each, OF_REFUSED) for each in found] == [
        all_shown(row_of[each.id]) for each in found
    ]
    (payment,) = read(ListOrderPaymentsRequest(order_id=order_id)).payments
    assert payment.refused_events == len(rows)


@pytest.mark.parametrize("moment", far_times.EDGES)
def test_an_event_that_is_late_for_such_a_time(read: Call, orders: Orders, moment: int) -> None:
    """It is compared with the time that the order has, and goes on record with it."""
    order_id = orders.add(
        payment_provider="stripe",
        payment_status="authorized",
        payment_state=StatusWords.builtin().state("authorized").value,
        payment_event_time=text(moment),
        payment_status_since=text(moment),
    )
    request = UpdateOrderPaymentRequest(
        order_id=order_id, payment_status="failed", payment_event_time=time(datetime.now(UTC))
    )
    if moment < 0:
        assert read(request).order.payment_status == "failed"
        return

    assert refusal(read, request).reason == "PAYMENT_EVENT_LATE"

    same = orders.value(
        "SELECT refused.order_payment_event_time = orders.payment_event_time"
        " FROM refused_payment_events AS refused JOIN orders ON orders.id = refused.order_id"
        f" WHERE orders.id = {order_id}"
    )
    assert same is True


@pytest.mark.parametrize("protocol", ["grpcio", "connect-json"])
def test_each_event_arrives_at_a_watcher(running: Service, orders: Orders, protocol: str) -> None:
    order_id = orders.add()
    rows = [dict.fromkeys(OF_EVENT, moment) for moment in far_times.EDGES]
    with (
        WATCHERS[protocol](running.base_url) as watch,
        watch(WatchOrderPaymentsRequest(order_ids=[order_id])) as stream,
    ):
        next(stream)
        ids = insert(
            orders,
            "order_payment_events",
            rows,
            order_id=order_id,
            storefront_id=3,
            payment_status_after="paid",
        )
        found = [next(stream).event for _ in ids]
    assert [each and each.id for each in found] == ids
    assert [of_times(each, OF_EVENT) for each in found] == list(map(all_shown, rows))
