"""Lists of orders and of stuck payments, against plain filters in Python."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from persistence.models import Order, OrderFilter, OrderKey, Origin, PaymentUpdate
from persistence.orders import OrderRepository
from persistence.payment_states import PaymentState
from persistence.status_words import StatusWords
from tests.support import databases, payment_model, payment_words
from tests.support.orders import Orders

WORDS: Final = StatusWords.builtin()
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
# Words of each kind of state, of reversals and of none, and other spellings.
STATUSES: Final = (
    *("pending", "Pending", " pending", "open", "requires-action", "PROCESSING", "authorized"),
    *("failed", "Fail ed", "canceled", "expired", "paid", "P\tA_I-D", "succeeded", "refunded"),
    *("partially_refunded", "Partially Refunded", "disputed", "charged_back", "returned"),
    *("dispute_won", "refund_failed", "piad", "äöü", "PENDİNG", "paid\xa0"),
)
STOREFRONTS: Final = (1, 2, 3)
PROVIDERS: Final = (None, "stripe", "cash")
AMOUNTS: Final = (None, 0, 99, 100, 101)


def random_order(number: int, rng: random.Random) -> dict[str, Any]:
    status = rng.choice(STATUSES)
    return {
        "order_number": f"N-{number}",
        "buyer_id": rng.randint(1, 3),
        "storefront_id": rng.choice(STOREFRONTS),
        "status": rng.choice(("pending", "shipped")),
        "currency": "EUR",
        "subtotal_amount": 100,
        "total_amount": 100,
        "payment_status": status,
        "payment_provider": rng.choice(PROVIDERS),
        # As written by the service; unclassified; and as a reversal leaves it.
        "payment_state": rng.choice((WORDS.state(status), None, rng.choice(list(PaymentState)))),
        "payment_status_since": START + timedelta(seconds=rng.randint(0, 40)),
        "captured_amount": rng.choice(AMOUNTS),
        "refunded_amount": rng.choice(AMOUNTS),
        "created_at": START + timedelta(seconds=rng.randint(0, 40)),
    }


def insert(url: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Insert ``rows``, and return them with their ids and the states that they count by."""
    names = list(rows[0])
    statement = sql.SQL("INSERT INTO orders ({}) VALUES ({}) RETURNING id").format(
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join(map(sql.Placeholder, names)),
    )
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        ids = []
        for row in rows:
            cursor.execute(statement, row)
            ids += [each for (each,) in cursor]
    return [
        row
        | {"id": id_, "payment_state": row["payment_state"] or WORDS.state(row["payment_status"])}
        for row, id_ in zip(rows, ids, strict=True)
    ]


@pytest.fixture(scope="module")
def rows_and_url() -> Iterator[tuple[list[dict[str, Any]], str]]:
    rng = random.Random(1)
    with databases.clone() as url:
        yield insert(url, [random_order(number, rng) for number in range(600)]), url


def disagrees(row: dict[str, Any]) -> bool:
    return payment_model.amounts_disagree(
        payment_model.Order(
            payment_state=payment_words.State[row["payment_state"].name],
            **{name: row[name] for name in ("captured_amount", "refunded_amount", "total_amount")},
        )
    )


def matches(row: dict[str, Any], wanted: OrderFilter) -> bool:
    equal = {
        "payment_status": wanted.payment_status,
        "payment_provider": wanted.payment_provider,
        "storefront_id": wanted.storefront_id,
        "buyer_id": wanted.buyer_id,
        "order_number": wanted.order_number,
        "status": wanted.order_status,
    }
    if any(value is not None and row[name] != value for name, value in equal.items()):
        return False
    return (
        (wanted.created_from is None or row["created_at"] >= wanted.created_from)
        and (wanted.created_before is None or row["created_at"] < wanted.created_before)
        and (not wanted.payment_states or row["payment_state"] in wanted.payment_states)
        and (not wanted.payment_statuses or row["payment_status"] in wanted.payment_statuses)
        and (not wanted.amounts_disagree or disagrees(row))
    )


def rarely(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*[st.none()] * 7, values)


times = st.integers(0, 41).map(lambda seconds: START + timedelta(seconds=seconds))
filters = st.builds(
    OrderFilter,
    payment_status=rarely(st.sampled_from(STATUSES)),
    payment_provider=rarely(st.sampled_from(PROVIDERS)),
    storefront_id=rarely(st.sampled_from(STOREFRONTS)),
    buyer_id=rarely(st.integers(1, 3)),
    created_from=rarely(times),
    created_before=rarely(times),
    order_number=rarely(st.integers(0, 600).map("N-{}".format)),
    order_status=rarely(st.sampled_from(["pending", "shipped", "lost"])),
    payment_states=st.just(frozenset()) | st.frozensets(st.sampled_from(PaymentState)),
    payment_statuses=st.just(()) | st.lists(st.sampled_from(STATUSES), max_size=6, unique=True),
    amounts_disagree=st.booleans(),
)
scopes = st.none() | st.frozensets(st.integers(1, 4), min_size=1)


async def walk(
    orders: OrderRepository, wanted: OrderFilter, size: int, scope: frozenset[int] | None
) -> list[Order]:
    """Return all orders of the list, read in pages of that size."""
    found: list[Order] = []
    after = None
    while True:
        page = await orders.list_orders(wanted, size, after, scope)
        found += page
        if len(page) < size:
            return found
        after = OrderKey(page[-1].created_at, page[-1].id)


def test_lists_are_the_orders_that_match(
    rows_and_url: tuple[list[dict[str, Any]], str],
) -> None:
    rows, url = rows_and_url
    rows = sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=True)
    with asyncio.Runner() as runner:
        database = databases.pool(url)
        runner.run(database.__aenter__())
        orders = OrderRepository(database)

        @settings(max_examples=300, deadline=None)
        @given(filters, st.integers(1, 6), scopes)
        def check(wanted: OrderFilter, pages: int, scope: frozenset[int] | None) -> None:
            expected = [
                (row["id"], row["payment_state"])
                for row in rows
                if matches(row, wanted) and (scope is None or row["storefront_id"] in scope)
            ]

            found = runner.run(walk(orders, wanted, 1 + len(expected) // pages, scope))

            assert [(each.id, each.payment_state) for each in found] == expected

        check()
        runner.run(database.__aexit__(None, None, None))


def test_stuck_payments_are_open_unknown_or_undecided(
    rows_and_url: tuple[list[dict[str, Any]], str],
) -> None:
    rows, url = rows_and_url
    rows = sorted(rows, key=lambda row: (row["payment_status_since"], row["id"]))
    with asyncio.Runner() as runner:
        database = databases.pool(url)
        runner.run(database.__aenter__())
        orders = OrderRepository(database)

        async def walk_stuck(
            since: datetime, provider: str | None, size: int, scope: frozenset[int] | None
        ) -> list[int]:
            found: list[int] = []
            after = None
            while True:
                page = await orders.list_stuck(since, provider, size, after, scope)
                found += [each.id for each in page]
                if len(page) < size:
                    return found
                assert page[-1].payment_status_since is not None
                after = OrderKey(page[-1].payment_status_since, page[-1].id)

        @settings(max_examples=60, deadline=None)
        @given(times, st.sampled_from(PROVIDERS), st.integers(10, 60), scopes)
        def check(
            since: datetime, provider: str | None, size: int, scope: frozenset[int] | None
        ) -> None:
            assert runner.run(walk_stuck(since, provider, size, scope)) == [
                row["id"]
                for row in rows
                if row["payment_provider"] is not None
                and provider in (None, row["payment_provider"])
                and row["payment_state"] < PaymentState.FAILED
                and row["payment_status_since"] < since
                and (scope is None or row["storefront_id"] in scope)
            ]

        check()
        runner.run(database.__aexit__(None, None, None))


PARTIAL_INDEXES: Final = (
    "idx_orders_payment_state_created",
    "idx_orders_amounts_disagree",
)
EMPTY: Final = 8_192
"""The size in bytes of an index without entries: one page."""


@pytest.mark.anyio
async def test_the_usual_way_of_a_payment_adds_to_no_partial_index(database_url: str) -> None:
    """From pending to paid. An entry in an index costs an update some us of PostgreSQL's time."""

    def sizes() -> list[int]:
        names = ", ".join(f"pg_relation_size('{name}')" for name in PARTIAL_INDEXES)
        sizes: list[int] = orders.value(f"SELECT ARRAY[{names}]")
        return sizes

    orders = Orders(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        for name in PARTIAL_INDEXES:
            connection.execute(sql.SQL("REINDEX INDEX {}").format(sql.Identifier(name)))
    order_id = orders.add()
    begun = PaymentUpdate(payment_provider="stripe", payment_status="pending")
    paid = PaymentUpdate(payment_status="paid", captured_amount=11_983)
    refunded = PaymentUpdate(payment_status="refunded", refunded_amount=99)
    async with databases.pool(database_url) as database:
        repository = OrderRepository(database)
        for update in (begun, paid):
            await repository.update_payment_info(order_id, update, Origin("test"))
        assert sizes() == [EMPTY] * len(PARTIAL_INDEXES)

        await repository.update_payment_info(order_id, refunded, Origin("test"))
        orders.change(order_id, payment_status="lost")
    assert min(sizes()) > EMPTY
