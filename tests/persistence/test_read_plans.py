"""Every statement that reads finds its rows by an index, in a table of a million orders."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import chain, combinations
from typing import Any, Final

import psycopg
import pytest

from persistence import list_queries, position_queries, queries
from persistence.diagnostics.status_words import UNCLEAR
from persistence.models import OrderFilter, OrderKey
from persistence.payment_states import PaymentState
from persistence.status_words import StatusWords
from tests.support import databases
from tests.support.plans import Node, Read, explain, nodes, touched

MILLION: Final = 1_000_000
FIRST_ORDER: Final = datetime(2025, 1, 1, tzinfo=UTC)
BETWEEN_ORDERS: Final = timedelta(seconds=20)
A_FEW: Final = 5_000  # rows, out of a million; of a plan for any values, ten pages of 500

# Of ten orders, three have no payment and one a failed payment; of a thousand, one each is still
# processing, pending in another word, and charged back; of 50,000, one was changed by hand.
# The amounts of one of five thousand disagree. Only the oldest 5,000 have the provider cash. One of
# five has references.
_PAYMENT: Final = """
    SELECT n, lpad(n::text, 7, '0') AS number, n::text::xid8 AS transaction_id,
        1 + n % 200 AS storefront_id, 1 + n % 100000 AS buyer_id,
        timestamptz '2025-01-01 00:00:00+00' + n * interval '20 seconds' AS placed_at,
        CASE WHEN n % 1000 = 0 THEN 'processing' WHEN n % 1000 = 501 THEN 'open'
            WHEN n % 1000 = 502 THEN 'charged_back' WHEN n % 50000 = 503 THEN 'Fully Paid'
            WHEN n % 10 < 3 THEN 'pending' WHEN n % 10 = 3 THEN 'failed' ELSE 'paid' END AS status,
        CASE WHEN n <= 5000 THEN 'cash' WHEN n % 1000 IN (0, 501, 502) OR n % 10 >= 3 THEN
            CASE n % 3 WHEN 0 THEN 'allsecure' ELSE 'stripe' END END AS provider,
        CASE WHEN n % 5 = 0 THEN lpad(n::text, 7, '0') END AS reference
    FROM generate_series(1, 1000000) n
"""
_STATE: Final = """
    CASE status WHEN 'pending' THEN 2 WHEN 'open' THEN 2 WHEN 'processing' THEN 4
        WHEN 'failed' THEN 6 WHEN 'paid' THEN 9 WHEN 'charged_back' THEN 13 END
"""
_ADD_ORDERS: Final = f"""
    INSERT INTO orders (
        id, order_number, buyer_id, storefront_id, currency, subtotal_amount, total_amount,
        created_at, updated_at, payment_status, payment_provider, payment_session_id,
        payment_intent_id, payment_idempotency_key, payment_transaction_id,
        payment_state, payment_status_since, captured_amount
    ) SELECT
        n, number, buyer_id, storefront_id, 'EUR', 1000, 1000, placed_at, placed_at, status,
        provider, 'cs_' || reference, 'pi_' || reference, 'evt_' || reference, 'txn_' || reference,
        CASE WHEN provider IS NOT NULL THEN {_STATE} END,
        CASE WHEN provider IS NOT NULL THEN placed_at END,
        CASE WHEN status = 'paid' THEN CASE WHEN n % 5000 = 4 THEN 900 ELSE 1000 END END
    FROM ({_PAYMENT}) payment
"""
# Each event has its own transaction id, which is the order's id.
_ADD_EVENTS: Final = f"""
    INSERT INTO order_payment_events (
        order_id, storefront_id, transaction_id, created_at, payment_status_after,
        payment_provider_after, payment_session_id_after, payment_intent_id_after,
        payment_idempotency_key_after, idempotency_key, payment_transaction_id_after
    ) SELECT
        n, storefront_id, transaction_id, placed_at, status, provider, 'cs_' || reference,
        'pi_' || reference, 'evt_' || reference, 'evt_' || reference, 'txn_' || reference
    FROM ({_PAYMENT}) payment
"""


@pytest.fixture
def connection() -> Iterator[psycopg.ClientCursor[Any]]:
    with databases.clone() as url:
        _fill(url)
        with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as opened:
            cursor = opened.cursor()
            assert isinstance(cursor, psycopg.ClientCursor)
            yield cursor


def _fill(url: str) -> None:
    """Insert the rows, then build the indexes: unlogged and unchecked, in two sessions."""
    with psycopg.connect(url, autocommit=True) as connection, ThreadPoolExecutor(2) as pool:
        # SET UNLOGGED rewrites the table, so it runs while the table is empty.
        connection.execute("ALTER TABLE orders SET UNLOGGED")
        connection.execute("ALTER TABLE order_payment_events SET UNLOGGED")
        checks = connection.execute(
            "SELECT conname FROM pg_constraint"
            " WHERE conrelid = 'orders'::regclass AND contype = 'c'"
        ).fetchall()
        for (name,) in checks:
            connection.execute(f"ALTER TABLE orders DROP CONSTRAINT {name}")
        indexes = connection.execute(
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
            " WHERE indrelid IN ('orders'::regclass, 'order_payment_events'::regclass)"
            " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"
        ).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")

        def run(*statements: str) -> None:
            with psycopg.connect(url, autocommit=True) as own:
                own.execute("SET maintenance_work_mem = '256MB'")
                own.execute("SET max_parallel_maintenance_workers = 0")
                with own.transaction():
                    for statement in statements:
                        own.execute(statement)

        rows = (
            (
                "ALTER TABLE orders DISABLE TRIGGER USER",
                _ADD_ORDERS,
                "ALTER TABLE orders ENABLE TRIGGER USER",
            ),
            (_ADD_EVENTS,),
        )
        list(pool.map(lambda statements: run(*statements), rows))
        list(pool.map(lambda index: run(index[1]), indexes))
        list(pool.map(run, ("ANALYZE orders", "ANALYZE order_payment_events")))


def _placed_at(order_id: int) -> datetime:
    return FIRST_ORDER + order_id * BETWEEN_ORDERS


MIDDLE: Final = OrderKey(_placed_at(MILLION // 2), MILLION // 2)

ONE_ORDER: Final = {"limit": 51, "order_id": MILLION // 2, "after_id": 0}
BETWEEN: Final = {
    "limit": 500,
    "since": "999900:999950:999910",
    "upto": "999990:1000001:999991,999993",
    "after_id": 0,
    "mark_since": "999980:999980:",
    "last": "1000000",
    "mark": 0,
}

# The filters with one value that an index serves, and the order's number, which is one of them all.
COMMON: Final = OrderFilter(
    payment_status="paid",
    payment_provider="stripe",
    storefront_id=8,
    buyer_id=8,
    created_from=_placed_at(1_000),
    created_before=_placed_at(900_000),
    order_number="0400007",
)
RARE: Final = OrderFilter(
    payment_status="disputed",
    payment_provider="cash",
    storefront_id=404,
    buyer_id=MILLION,
    created_from=_placed_at(499_990),
    created_before=_placed_at(500_010),
    order_number="none",
)
WORDS: Final = StatusWords.builtin()
UNUSUAL: Final = frozenset(PaymentState) - {PaymentState.PENDING, PaymentState.PAID}
COMMON_STATES: Final = (
    PaymentState.PENDING,
    PaymentState.PROCESSING,
    PaymentState.FAILED,
    PaymentState.PAID,
    PaymentState.CHARGED_BACK,
)
FURTHER: Final = [
    *(OrderFilter(payment_states=frozenset({state})) for state in PaymentState),
    OrderFilter(payment_states=UNUSUAL),
    OrderFilter(payment_states=frozenset(PaymentState)),
    OrderFilter(payment_statuses=("failed", "open", "paid")),
    OrderFilter(payment_statuses=("failed", "disputed"), payment_states=UNUSUAL),
    OrderFilter(amounts_disagree=True),
    OrderFilter(amounts_disagree=True, payment_states=frozenset({PaymentState.PAID})),
    OrderFilter(order_status="pending", created_from=_placed_at(990_000)),
]
"""Lists with filters of several values, and with those that need another."""


def reads() -> Iterator[tuple[str, Read]]:
    """Yield every statement that reads, except ListOrders."""
    yield "get_order", Read(queries.get_order(), (MILLION // 2,))
    for provider in ((), ("stripe",)):
        for after in (None, MIDDLE):
            sql = list_queries.list_stuck(by_provider=bool(provider), after_key=after is not None)
            values = {"limit": 51, "unchanged_since": _placed_at(900_000)}
            values |= list_queries.stuck_values(WORDS) | queries.after_values(after)
            values |= dict.fromkeys(["payment_provider"] if provider else [], "stripe")
            yield f"stuck {provider} {after}", Read(sql, values)
    yield "events by key", Read(queries.get_events_by_key(), ("evt_0050005", "0" * 32))
    yield "events", Read(queries.list_events(), ONE_ORDER)
    yield "words of unclear orders", Read(UNCLEAR, (1_000,))
    few, many = {"order_ids": [999_990, 999_995, 7]}, {"order_ids": list(range(1, 1_001))}
    storefronts = {"storefront_ids": [8]}
    for wanted in (few, many, storefronts, few | storefronts, {}):
        sql = queries.events_between(
            order_ids="order_ids" in wanted, storefront_ids="storefront_ids" in wanted
        )
        yield f"between {wanted}", Read(sql, {**BETWEEN, **wanted})


def list_of_orders(wanted: OrderFilter, after: OrderKey | None, *scope: int) -> Read:
    """Return ListOrders with the filters that are set; with a ``scope``, of those storefronts."""
    sql = list_queries.list_orders(
        list_queries.filters_of(wanted),
        states=wanted.payment_states,
        statuses=len(wanted.payment_statuses),
        after_key=after is not None,
        scoped=bool(scope),
    )
    values = list_queries.values_of(wanted, WORDS) | queries.after_values(after)
    return Read(sql, {"limit": 51, **values, **queries.scope_values(scope or None)})


def with_some(given: OrderFilter, names: Collection[str]) -> OrderFilter:
    """Return ``given`` with some of its filters only."""
    return OrderFilter(**{name: getattr(given, name) for name in names})


def lists_of_orders(
    given: OrderFilter, most_filters: int = len(list_queries.FILTERS)
) -> Iterator[tuple[str, Read]]:
    """Yield ListOrders with every set of filters, for the first page and for one in the middle."""
    names = list_queries.filters_of(given)
    sets = (combinations(names, size) for size in range(most_filters + 1))
    for filters in chain.from_iterable(sets):
        for after in (None, MIDDLE):
            wanted = with_some(given, filters)
            yield f"orders {wanted} {after}", list_of_orders(wanted, after)


def further_lists() -> Iterator[tuple[str, Read]]:
    for wanted in FURTHER:
        for after in (None, MIDDLE):
            for scope in ((), (8, 9, 13, 404)):
                yield f"{wanted} {after} {scope}", list_of_orders(wanted, after, *scope)


def scoped_reads(given: OrderFilter) -> Iterator[tuple[str, Read]]:
    """Yield every statement that reads, with a scope of some storefronts."""
    some = [8, 9, 13, 404]
    yield "get_order", Read(queries.get_order(scoped=True), (MILLION // 2, some))
    scope = {"storefronts": some}
    yield "events", Read(queries.list_events(scoped=True), {**ONE_ORDER, **scope})
    sql = queries.events_between(order_ids=True, storefront_ids=False, scoped=True)
    yield "between", Read(sql, {**BETWEEN, "order_ids": [999_990, 999_995, 7], **scope})
    for after in (None, MIDDLE):
        page = {"limit": 51, **queries.after_values(after), **scope}
        sql = list_queries.list_stuck(by_provider=True, after_key=after is not None, scoped=True)
        stuck = {"unchanged_since": _placed_at(900_000), "payment_provider": "stripe"}
        stuck |= list_queries.stuck_values(WORDS)
        yield f"stuck {after}", Read(sql, page | stuck)
        names = list_queries.filters_of(given)
        for filters in ((), *((name,) for name in names if name != "storefront_id")):
            wanted = with_some(given, filters)
            yield f"scoped orders {wanted} {after}", list_of_orders(wanted, after, *some)


def is_costly(node: Node) -> bool:
    """Return whether the node scans a whole table, or sorts more than ``A_FEW`` rows at once."""
    sorts_many = node.kind == "Sort" and node.rows > A_FEW
    return node.kind == "Seq Scan" or (sorts_many and not node.is_of_pages)


def is_found_by_an_index(connection: psycopg.ClientCursor[Any], mode: str) -> None:
    """Check that every plan, custom or generic, uses an index and has no costly node."""
    connection.execute(f"SET plan_cache_mode = {mode}".encode())
    bad = {}
    lists = (lists_of_orders(COMMON), lists_of_orders(RARE), further_lists())
    for name, read in chain(reads(), *lists, scoped_reads(COMMON)):
        found = list(nodes(explain(connection, read)))
        if any(map(is_costly, found)) or not any("Index" in each.kind for each in found):
            bad[name] = found
    assert bad == {}


def touches_little_else(connection: psycopg.ClientCursor[Any]) -> None:
    """Check that the blocks read are proportional to the rows found, with one filter at most."""
    connection.execute("SET plan_cache_mode = force_custom_plan")
    bad = {}
    for name, read in chain(reads(), lists_of_orders(RARE, most_filters=1)):
        plan = explain(connection, read, ", ANALYZE, BUFFERS")
        if touched(plan) > 50 + 5 * plan["Actual Rows"]:
            bad[name] = touched(plan), plan["Actual Rows"]
    assert bad == {}


def costs_the_same_in_the_middle(
    connection: psycopg.ClientCursor[Any], wanted: OrderFilter, most: int = 60
) -> None:
    """Check that a full page touches less than ``most`` blocks, at the start and in the middle."""
    connection.execute("SET plan_cache_mode = force_custom_plan")

    plans = [
        explain(connection, list_of_orders(wanted, after), ", ANALYZE, BUFFERS")
        for after in (None, MIDDLE)
    ]

    assert [plan["Actual Rows"] for plan in plans] == [51, 51]
    cost, cost_in_the_middle = map(touched, plans)
    assert 0 < cost < most
    assert cost_in_the_middle <= cost + 10


def costs_a_page_of_each(connection: psycopg.ClientCursor[Any]) -> None:
    """Check the cost of a page with a scope of some storefronts, at the start and in the middle."""
    connection.execute("SET plan_cache_mode = force_custom_plan")
    some = (8, 9, 13)
    for after in (None, MIDDLE):
        read = list_of_orders(OrderFilter(), after, *some)
        plan = explain(connection, read, ", ANALYZE, BUFFERS")
        assert plan["Actual Rows"] == 51
        assert 0 < touched(plan) < 60 * len(some)


def finds_a_number_by_one_probe(connection: psycopg.ClientCursor[Any]) -> None:
    connection.execute("SET plan_cache_mode = force_custom_plan")
    wanted = OrderFilter(order_number="0400007")
    for scope, found in {(): 1, (8, 9, 13, 404): 1, (9, 13): 0}.items():
        plan = explain(connection, list_of_orders(wanted, None, *scope), ", ANALYZE, BUFFERS")
        assert plan["Actual Rows"] == found
        assert 0 < touched(plan) < 15


def looks_cost_little(connection: psycopg.ClientCursor[Any]) -> None:
    """Check the cost of a look from a position, whether it is old or new, in any plan.

    It reads up to 500 events; also while a transaction is in progress that began long before.
    """
    middle, end = MILLION // 2, MILLION - 1
    positions = [
        ("1:1:", "1:1:", "0"),
        ("1:1:", f"{middle}:{middle}:", f"{middle - 1}"),
        (f"{end - 20}:{end - 20}:", f"{end}:{end}:", f"{end - 1}"),
        (f"9:{end - 20}:9,{middle}", f"9:{end}:9", f"{end - 1}"),
    ]
    for mode in ("force_custom_plan", "force_generic_plan"):
        connection.execute(f"SET plan_cache_mode = {mode}".encode())
        for sql in (position_queries.visible(), position_queries.durable()):
            for values in positions:
                plan = explain(connection, Read(sql, values), ", ANALYZE, BUFFERS")
                assert 0 < touched(plan) < 150, (mode, values, sql[:0])


COSTS: Final = [
    (OrderFilter(), 60),
    *((with_some(COMMON, [name]), 60) for name in ("payment_status", "payment_provider")),
    *((with_some(COMMON, [name]), 60) for name in ("storefront_id", "created_from")),
    (with_some(COMMON, ["created_before"]), 60),
    *((OrderFilter(payment_states=frozenset({state})), 150) for state in COMMON_STATES),
    (OrderFilter(payment_states=UNUSUAL), 150),
    (OrderFilter(payment_statuses=("failed", "open", "paid")), 200),
    (OrderFilter(amounts_disagree=True), 150),
]
"""Lists of more than a page, and the blocks of which a page touches less."""


def test_reads_of_a_million_orders(
    connection: psycopg.ClientCursor[Any], subtests: pytest.Subtests
) -> None:
    """One test, so that the orders are inserted once."""
    for mode in ("force_custom_plan", "force_generic_plan"):
        with subtests.test("is found by an index", mode=mode):
            is_found_by_an_index(connection, mode)
    with subtests.test("touches little else"):
        touches_little_else(connection)
    with subtests.test("a look costs little"):
        looks_cost_little(connection)
    with subtests.test("costs a page of each storefront"):
        costs_a_page_of_each(connection)
    with subtests.test("finds a number by one probe"):
        finds_a_number_by_one_probe(connection)
    for wanted, most in COSTS:
        with subtests.test("costs the same in the middle", wanted=wanted):
            costs_the_same_in_the_middle(connection, wanted, most)
