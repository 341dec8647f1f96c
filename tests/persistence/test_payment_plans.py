"""A payment's order, attempts and refused events are found by indexes, among many orders."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, combinations, product
from typing import Any, Final

import psycopg
import pytest

from persistence import queries
from persistence.find_order import REFERENCES, find_order
from persistence.models import OrderKey
from persistence.refused_event_log import FILTERS, list_oldest_refused, list_refused
from tests.support import databases
from tests.support.plans import Read, explain, nodes, touched

ORDERS: Final = 100_000
A_FEW: Final = 2_500  # rows to sort: of a plan for any values, five pages of 500

# Each order has an attempt that has failed, then one that is paid; and for each there is a refused
# event. The references end with the number of the order, and one that is called "undefined" has
# come with every order.
_FILL: Final = (
    """
    INSERT INTO orders (
        id, order_number, buyer_id, storefront_id, currency, subtotal_amount, total_amount,
        payment_status, payment_provider, payment_session_id, payment_intent_id,
        payment_idempotency_key, payment_transaction_id, payment_state
    ) SELECT n, n, 1, 1 + n % 200, 'EUR', 1, 1, 'paid', 'stripe', 'new_' || n, 'new_' || n,
        'new_' || n, 'new_' || n, 9
    FROM generate_series(1, 100000) n
    """,
    """
    INSERT INTO order_payment_events (
        order_id, storefront_id, payment_status_after, payment_provider_after,
        payment_session_id_before, payment_session_id_after,
        payment_intent_id_before, payment_intent_id_after,
        payment_transaction_id_before, payment_transaction_id_after,
        payment_idempotency_key_before, payment_idempotency_key_after, idempotency_key
    ) SELECT n, 1 + n % 200, 'paid', CASE WHEN n % 2 = 0 THEN 'stripe' END,
        before, after, before, after, before, after, before, after,
        CASE WHEN step <> 2 THEN after END
    FROM generate_series(1, 100000) n, LATERAL (VALUES
        (1, NULL, 'old_' || n), (2, 'old_' || n, 'undefined'), (3, 'undefined', 'new_' || n)
    ) steps (step, before, after)
    """,
    """
    INSERT INTO refused_payment_events (
        order_id, storefront_id, transaction_id, first_refused_at, digest, written, tells_of_money,
        reason, payment_provider, payment_session_id, payment_intent_id, payment_transaction_id,
        payment_idempotency_key, order_payment_provider, request_id
    ) SELECT n, 1 + n % 200, n::text::xid8,
        timestamptz '2026-01-01 00:00+00' + n * interval '1 minute',
        md5(n::text)::uuid, false, false,
        CASE n % 1000 WHEN 0 THEN 'PAYMENT_DUPLICATE' ELSE 'PAYMENT_EVENT_LATE' END,
        CASE WHEN n <= 100 THEN 'Ca-sh' WHEN n % 3 = 0 THEN 'stripe' END,
        'no_' || n, 'no_' || n, 'no_' || n, 'no_' || n, 'stripe', 'r'
    FROM generate_series(1, 100000) n
    """,
)
_TABLES: Final = ("orders", "order_payment_events", "refused_payment_events")


@pytest.fixture
def cursor() -> Iterator[psycopg.ClientCursor[Any]]:
    with (
        databases.clone() as url,
        psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection,
    ):
        connection.execute("ALTER TABLE orders DISABLE TRIGGER USER")
        for statement in _FILL:
            connection.execute(statement)
        connection.execute("ALTER TABLE orders ENABLE TRIGGER USER")
        for table in _TABLES:
            connection.execute(f"ANALYZE {table}".encode())
        opened = connection.cursor()
        assert isinstance(opened, psycopg.ClientCursor)
        yield opened


SOME: Final = [8, 9, 13, 404]
BETWEEN: Final = {
    "limit": 500,
    "since": "99990:99995:99991",
    "upto": "99999:100001:99999",
    "after_id": 0,
    "mark_since": "99980:99980:",
    "last": "100000",
    "mark": 0,
}
MIDDLE: Final = OrderKey(datetime(2026, 2, 1, tzinfo=UTC), 1)
WANTED: Final[dict[str, object]] = {
    "order_id": 50_000,
    "reason": "PAYMENT_DUPLICATE",
    "payment_provider": "stripe",
    "storefront_id": 8,
    "refused_from": datetime(2026, 1, 5, tzinfo=UTC),
    "refused_before": datetime(2026, 3, 1, tzinfo=UTC),
}


def finds() -> Iterator[tuple[str, Read]]:
    for after, some in product((None, MIDDLE), (None, SOME)):
        sql = list_oldest_refused(after_key=after is not None, scoped=some is not None)
        values: dict[str, object] = {"limit": 51, "order_id": 50_000}
        values |= queries.after_values(after) | queries.scope_values(some)
        yield f"oldest refused {after} {some}", Read(sql, values)
    few, shop = {"order_ids": [99_990, 99_995, 7]}, {"storefront_ids": [8]}
    # A watch of a storefront that the caller may see needs no scope.
    for wanted, some in ((few, None), (few, SOME), (shop, None), (few | shop, None), ({}, None)):
        sql = queries.events_between(
            refused=True,
            order_ids="order_ids" in wanted,
            storefront_ids="storefront_ids" in wanted,
            scoped=some is not None,
        )
        yield (
            f"refused between {wanted}",
            Read(sql, {**BETWEEN, **wanted, **queries.scope_values(some)}),
        )
    for reference, provider, scope in product(REFERENCES, ((), ("stripe",)), ((), (SOME,))):
        sql = find_order(reference, by_provider=bool(provider), scoped=bool(scope))
        for value in ("new_50007", "old_50007", "no_50007", "unknown"):
            name = f"{reference} {value} {provider} {scope}"
            yield name, Read(sql, (value, *provider, *scope))


def lists() -> Iterator[tuple[str, Read]]:
    sets = (combinations(FILTERS, size) for size in range(len(FILTERS) + 1))
    for filters, after in product(chain.from_iterable(sets), (None, MIDDLE)):
        for scope in [None] if "storefront_id" in filters else [None, SOME]:
            sql = list_refused(filters, after_key=after is not None, scoped=scope is not None)
            values = {name: WANTED[name] for name in filters}
            values |= {"limit": 51, **queries.after_values(after), **queries.scope_values(scope)}
            yield f"refused {filters} {after} {scope}", Read(sql, values)
    latest: dict[str, object] = {"limit": 2_000, "order_id": 50_000}
    yield "latest", Read(queries.list_latest_events(), latest)
    scoped = latest | queries.scope_values(SOME)
    yield "latest, scoped", Read(queries.list_latest_events(scoped=True), scoped)


def is_costly(plan: dict[str, Any]) -> bool:
    """Return whether the plan scans a whole table, or sorts more than a few rows at once."""
    return any(
        node.kind == "Seq Scan" or (node.kind == "Sort" and node.rows > A_FEW)
        for node in nodes(plan)
    )


def test_plans(cursor: psycopg.ClientCursor[Any], subtests: pytest.Subtests) -> None:
    """One test, so that the orders are inserted once."""
    for mode in ("force_custom_plan", "force_generic_plan"):
        cursor.execute(f"SET plan_cache_mode = {mode}".encode())
        with subtests.test("by an index", mode=mode):
            plans = {name: explain(cursor, read) for name, read in chain(finds(), lists())}
            assert {name: plan for name, plan in plans.items() if is_costly(plan)} == {}
        with subtests.test("touches little", mode=mode):
            costs = {
                name: touched(explain(cursor, read, ", ANALYZE, BUFFERS")) for name, read in finds()
            }
            assert {name: cost for name, cost in costs.items() if cost > 60} == {}
    with subtests.test("of a rare provider, in any spelling, few are read"):
        for after in (None, MIDDLE):
            sql = list_refused(("payment_provider",), after_key=after is not None)
            values = {"limit": 51, "payment_provider": "cash", **queries.after_values(after)}
            plan = explain(cursor, Read(sql, values), ", ANALYZE, BUFFERS")
            assert plan["Actual Rows"] == 51
            assert touched(plan) < 150
    with subtests.test("of a reference of every order, few are read"):
        for reference in ("payment_session_id", "payment_intent_id"):
            read = Read(find_order(reference, by_provider=False), ("undefined",))
            plan = explain(cursor, read, ", ANALYZE, BUFFERS")
            assert plan["Actual Rows"] == 20
            assert touched(plan) < 15_000
