"""The history of payments: what its trigger records, what it refuses, and how it came to be."""

import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from yoyo import read_migrations

from persistence import migrations
from persistence.database import Database
from persistence.errors import IdempotencyKeyReused
from persistence.orders import OrderRepository
from persistence.records import PAYMENT_COLUMNS, Origin
from persistence.schema import migrations_directory
from tests.support import databases
from tests.support.orders import Orders

BEFORE_LEDGER: Final = "20251220000002"
LEDGER: Final = "20261123000001_create_order_payment_events"
LISTS: Final = "20261123000002_index_orders_for_lists"

PAYMENT: Final = {
    "payment_provider": "stripe",
    "payment_session_id": "cs_1",
    "payment_intent_id": "pi_1",
    "payment_idempotency_key": "evt_1",
    "payment_status": "paid",
    "payment_transaction_id": "txn_1",
}
NOTHING: Final = dict.fromkeys(PAYMENT_COLUMNS)
UNPAID: Final = NOTHING | {"payment_status": "pending"}

CHANGES: Final = {
    "update": "UPDATE order_payment_events SET caller = 'somebody'",
    "update-of-nothing": "UPDATE order_payment_events SET caller = 'somebody' WHERE false",
    "delete": "DELETE FROM order_payment_events",
    "truncate": "TRUNCATE order_payment_events",
    "upsert": (
        "INSERT INTO order_payment_events OVERRIDING SYSTEM VALUE"
        " SELECT * FROM order_payment_events"
        " ON CONFLICT (order_id, id) DO UPDATE SET caller = 'somebody'"
    ),
    "merge": (
        "MERGE INTO order_payment_events USING orders ON order_id = orders.id"
        " WHEN MATCHED THEN DELETE"
    ),
}


class Killed(BaseException):
    """Ends a migration at once."""


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True, row_factory=dict_row)


def events(url: str, order_id: int | None = None) -> list[dict[str, Any]]:
    with connect(url) as connection:
        return connection.execute(
            "SELECT * FROM order_payment_events WHERE order_id = %(id)s OR %(id)s IS NULL"
            " ORDER BY id",
            {"id": order_id},
        ).fetchall()


def only_event(url: str, order_id: int) -> dict[str, Any]:
    (event,) = events(url, order_id)
    return event


def before(event: dict[str, Any]) -> dict[str, str | None]:
    return {name: event[f"{name}_before"] for name in PAYMENT_COLUMNS}


def after(event: dict[str, Any]) -> dict[str, str | None]:
    return {name: event[f"{name}_after"] for name in PAYMENT_COLUMNS}


def payment_of(row: dict[str, Any]) -> dict[str, str | None]:
    return {name: row[name] for name in PAYMENT_COLUMNS}


def check_first_event(event: dict[str, Any], row: dict[str, Any]) -> None:
    """It enters the payment that ``row`` held before there was a history."""
    assert before(event) == NOTHING
    assert after(event) == payment_of(row)
    assert event["created_at"] == row["updated_at"]
    assert event["idempotency_key"] == row["payment_idempotency_key"]
    assert event["storefront_id"] == row["storefront_id"]
    assert (event["request_fields"], event["request_id"], event["caller"]) == (None, None, None)


@contextmanager
def plain_role(url: str) -> Iterator[str]:
    """A role that may do whatever can be granted, and owns nothing."""
    name = sql.Identifier(f"clerk_{uuid.uuid4().hex[:12]}")
    with connect(url) as connection:
        if connection.info.parameter_status("is_superuser") != "on":
            pytest.skip("only a superuser may take the place of others")
        connection.execute(sql.SQL("CREATE ROLE {}").format(name))
        connection.execute(sql.SQL("GRANT ALL ON orders, order_payment_events TO {}").format(name))
        try:
            yield name.as_string().strip('"')
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
            connection.execute(sql.SQL("DROP ROLE {}").format(name))


def log_in(connection: psycopg.Connection[Any], role: str) -> None:
    """Go on as if the connection had been made by ``role``."""
    connection.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(sql.Identifier(role)))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    async with databases.pool(url, max_connections=1) as database:
        yield database


@pytest.mark.parametrize("field", PAYMENT_COLUMNS)
def test_an_order_that_comes_with_a_payment_has_an_event(database_url: str, field: str) -> None:
    order_id = Orders(database_url).add(storefront_id=42, **{field: PAYMENT[field]})

    event = only_event(database_url, order_id)

    assert before(event) == NOTHING
    assert after(event) == UNPAID | {field: PAYMENT[field]}
    assert event["storefront_id"] == 42
    key = PAYMENT[field] if field == "payment_idempotency_key" else None
    assert event["idempotency_key"] == key


def test_an_order_without_a_payment_has_none(database_url: str) -> None:
    Orders(database_url).add(status="confirmed", payment_status="pending")

    assert events(database_url) == []


def test_a_change_of_something_else_is_no_event(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add(**PAYMENT)

    orders.change(order_id, status="shipped", updated_at=datetime(2030, 1, 1, tzinfo=UTC))
    orders.change(order_id, **PAYMENT)

    assert len(events(database_url)) == 1


def test_several_fields_make_one_event(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add(payment_provider="cash")

    orders.change(order_id, **PAYMENT)

    _, event = events(database_url, order_id)
    assert before(event) == UNPAID | {"payment_provider": "cash"}
    assert after(event) == PAYMENT
    assert event["idempotency_key"] == "evt_1"


@pytest.mark.parametrize("field", sorted(set(PAYMENT_COLUMNS) - {"payment_status"}))
def test_a_field_that_is_taken_away_is_an_event(database_url: str, field: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add(**PAYMENT)

    orders.change(order_id, **{field: None})

    _, event = events(database_url, order_id)
    assert before(event) == PAYMENT
    assert after(event) == PAYMENT | {field: None}
    assert event["idempotency_key"] is None


def test_each_order_of_a_statement_has_its_event(database_url: str) -> None:
    orders = Orders(database_url)
    order_ids = [orders.add() for _ in range(3)]
    with connect(database_url) as connection:
        connection.execute("UPDATE orders SET payment_status = 'paid'")

    assert sorted(each["order_id"] for each in events(database_url)) == order_ids


@pytest.mark.anyio
async def test_an_update_is_recorded_with_its_request(database_url: str) -> None:
    order_id = Orders(database_url).add()
    async with opened(database_url) as database:
        repo = OrderRepository(database)
        for params, origin in (
            (PAYMENT, Origin("request-1", "webhooks")),
            ({"payment_status": "refunded"}, Origin("request-2")),
        ):
            await repo.update_payment_info(order_id, params, origin)
        # What the service has told about its request is forgotten by then.
        await database.fetch_row("UPDATE orders SET payment_provider = 'cash'")

    recorded = [
        (each["request_id"], each["caller"], each["idempotency_key"], each["request_fields"])
        for each in events(database_url, order_id)
    ]

    assert recorded == [
        ("request-1", "webhooks", "evt_1", list(PAYMENT_COLUMNS)),
        ("request-2", None, None, None),
        (None, None, None, None),
    ]


def test_a_change_by_hand_is_recorded_with_who_logged_in(database_url: str) -> None:
    order_id = Orders(database_url).add()
    with connect(database_url) as connection, plain_role(database_url) as role:
        owner = connection.info.user
        log_in(connection, role)
        connection.execute("UPDATE orders SET payment_status = 'paid'")
        log_in(connection, owner)
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        connection.execute("UPDATE orders SET payment_status = 'refunded'")

    recorded = [
        (each["database_role"], each["request_id"], each["caller"], each["request_fields"])
        for each in events(database_url, order_id)
    ]

    assert recorded == [(role, None, None, None), (owner, None, None, None)]


def test_an_event_is_rolled_back_with_its_change(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE orders SET payment_status = 'paid'")
        connection.rollback()
        connection.execute("UPDATE orders SET payment_status = 'failed'")
        with connection.transaction(force_rollback=True):
            connection.execute("UPDATE orders SET payment_status = 'expired'")

    assert after(only_event(database_url, order_id))["payment_status"] == "failed"


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_history_is_not_changed(database_url: str, statement: str) -> None:
    """Not by its owner, who is a superuser here, and not by whoever has all privileges."""
    Orders(database_url).add(**PAYMENT)
    kept = events(database_url)
    with connect(database_url) as connection, plain_role(database_url) as role:
        for _ in range(2):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="can be added to"):
                connection.execute(statement.encode())
            log_in(connection, role)

    assert events(database_url) == kept


def test_a_key_that_was_ever_used_is_not_used_again(database_url: str) -> None:
    """Not by hand either, and not by the order that had it: it has been replaced since."""
    orders = Orders(database_url)
    order_id, other_id = orders.add(**PAYMENT), orders.add()
    orders.change(order_id, payment_idempotency_key="evt_2")
    kept = events(database_url)

    for each in (order_id, other_id):
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            orders.change(each, payment_idempotency_key="evt_1")
        assert caught.value.diag.constraint_name == "idx_order_payment_events_idempotency_key"

    assert events(database_url) == kept
    assert orders.row(order_id)["payment_idempotency_key"] == "evt_2"
    assert orders.row(other_id)["payment_idempotency_key"] is None


@pytest.fixture
def live_url(database_url: str) -> str:
    """The URL of a database from before the history, which has had orders with payments since."""
    assert migrations.down(database_url, BEFORE_LEDGER) == [LISTS, LEDGER]
    return database_url


def add_orders(url: str) -> tuple[list[int], list[int]]:
    """Add orders and return the ids of those with a payment, and of the others."""
    orders = Orders(url)
    day = datetime(2026, 1, 1, tzinfo=UTC)
    paid, unpaid = [], []
    for number, (name, value) in enumerate(PAYMENT.items()):
        days = {"created_at": day, "updated_at": day + timedelta(days=number)}
        unpaid.append(orders.add(status="confirmed", **days))
        paid.append(orders.add(storefront_id=number + 1, **{name: value}, **days))
    every = {name: f"{value} too" for name, value in PAYMENT.items()}
    paid.append(orders.add(**every))
    paid.append(orders.add(payment_provider="cash", payment_status="pending"))
    return paid, unpaid


def check_entered(url: str, paid: list[int], unpaid: list[int]) -> None:
    """Each order with a payment has its first event, and nothing else has one."""
    for order_id in paid:
        check_first_event(only_event(url, order_id), Orders(url).row(order_id))
    assert [each for order_id in unpaid for each in events(url, order_id)] == []


def ledger_module() -> Any:
    for migration in read_migrations(str(migrations_directory())):
        if migration.id == LEDGER:
            migration.load()
            return migration.module
    raise AssertionError(f"there is no {LEDGER}")


def test_a_session_that_finds_other_tables_first_is_recorded_too(database_url: str) -> None:
    order_id = Orders(database_url).add()
    with connect(database_url) as connection:
        connection.execute(
            "CREATE TEMPORARY TABLE order_payment_events (LIKE public.order_payment_events)"
        )
        connection.execute("UPDATE orders SET payment_status = 'paid'")
        connection.execute("DROP TABLE pg_temp.order_payment_events")
        connection.execute("SET search_path = ''")
        connection.execute("UPDATE public.orders SET payment_status = 'refunded'")
    found = [each["payment_status_after"] for each in events(database_url, order_id)]
    assert found == ["paid", "refunded"]


def run_until_payments_are_entered(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Kill the migration when it begins to enter payments, and return its module."""
    module = ledger_module()

    def killed(_connection: object) -> None:
        raise Killed

    # As yoyo connects, without our row factory.
    with monkeypatch.context() as patch, psycopg.connect(url, autocommit=True) as connection:
        patch.setattr(module, "_enter_payments", killed)
        with pytest.raises(Killed):
            module.create(connection)
    return module


def test_payments_from_before_are_entered(live_url: str) -> None:
    paid, unpaid = add_orders(live_url)
    rows = {order_id: Orders(live_url).row(order_id) for order_id in (*paid, *unpaid)}

    migrations.up(live_url)

    check_entered(live_url, paid, unpaid)
    assert {order_id: Orders(live_url).row(order_id) for order_id in rows} == rows
    Orders(live_url).change(paid[0], payment_status="refunded")
    first, second = events(live_url, paid[0])
    assert before(second) == after(first)


def test_more_payments_than_one_batch(live_url: str) -> None:
    with connect(live_url) as connection:
        connection.execute(
            "INSERT INTO orders (id, order_number, buyer_id, storefront_id, currency,"
            " subtotal_amount, total_amount, payment_status) SELECT n * 3, n, 1, 1, 'EUR', 1, 1,"
            " CASE n % 4 WHEN 0 THEN 'pending' ELSE 'paid' END FROM generate_series(1, 12000) n"
        )

    migrations.up(live_url)

    entered = [each["order_id"] for each in events(live_url)]
    assert entered == [n * 3 for n in range(1, 12_001) if n % 4]


@pytest.mark.parametrize(
    "undo",
    [
        "",
        "DROP TRIGGER order_payment_inserted ON orders;"
        " DROP TRIGGER order_payment_updated ON orders",
        "DROP TRIGGER order_payment_events_append_only ON order_payment_events",
        "DROP INDEX idx_order_payment_events_idempotency_key",
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'idx_order_payment_events_transaction'::regclass",
        "ALTER TABLE order_payment_events DISABLE TRIGGER USER;"
        " DELETE FROM order_payment_events WHERE id % 2 = 0;"
        " ALTER TABLE order_payment_events ENABLE TRIGGER USER",
    ],
    ids=["nothing", "triggers", "append-only", "index", "invalid-index", "half-the-events"],
)
def test_a_run_that_was_interrupted_is_run_again(live_url: str, undo: str) -> None:
    paid, unpaid = add_orders(live_url)
    migrations.up(live_url)
    with connect(live_url) as connection:
        connection.execute(ledger_module()._record("order_payment_events", entering=True))
        connection.execute(undo.encode())
        connection.execute("DELETE FROM _yoyo_migration WHERE migration_id = %s", (LEDGER,))

    assert migrations.up(live_url) == [LEDGER]

    check_entered(live_url, paid, unpaid)
    Orders(live_url).change(unpaid[0], payment_status="failed")
    assert before(only_event(live_url, unpaid[0])) == UNPAID
    with pytest.raises(psycopg.errors.UniqueViolation):
        Orders(live_url).change(unpaid[0], payment_idempotency_key="evt_1")
    with connect(live_url) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM order_payment_events")
        invalid = connection.execute("SELECT FROM pg_index WHERE NOT indisvalid").fetchall()
    assert invalid == []


def test_a_payment_that_changes_before_it_is_entered(
    live_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its change enters it first. What has no payment yet has nothing to enter."""
    paid, unpaid = add_orders(live_url)
    orders = Orders(live_url)
    rows = {order_id: orders.row(order_id) for order_id in (*paid, *unpaid)}
    run_until_payments_are_entered(live_url, monkeypatch)

    for order_id in (paid[-1], unpaid[0]):
        orders.change(order_id, payment_status="failed", payment_idempotency_key=f"k{order_id}")
        orders.change(order_id, payment_status="expired")
    added = orders.add(payment_status="paid")
    migrations.up(live_url)

    first, *later = events(live_url, paid[-1])
    check_first_event(first, rows[paid[-1]])
    assert [before(each) for each in later] == [after(first), after(later[0])]
    assert [each["payment_status_after"] for each in later] == ["failed", "expired"]
    assert [each["idempotency_key"] for each in later] == [f"k{paid[-1]}", None]
    assert [before(each)["payment_status"] for each in events(live_url, unpaid[0])] == [
        "pending",
        "failed",
    ]
    assert after(only_event(live_url, added))["payment_status"] == "paid"
    check_entered(live_url, paid[:-1], unpaid[1:])


def test_a_payment_that_changes_while_it_is_entered(
    live_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entering waits for the change, which has entered the payment when it commits."""
    paid, unpaid = add_orders(live_url)
    row = Orders(live_url).row(paid[2])
    module = run_until_payments_are_entered(live_url, monkeypatch)
    with (
        ThreadPoolExecutor(1) as pool,
        connect(live_url) as watcher,
        psycopg.connect(live_url, autocommit=True) as entering,
        psycopg.connect(live_url) as changing,
    ):
        changing.execute("UPDATE orders SET payment_status = 'paid' WHERE id = %s", (paid[2],))
        running = pool.submit(module._enter_payments, entering)
        while not watcher.execute(
            "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'",
            (entering.info.backend_pid,),
        ).fetchall():
            assert not running.done(), running.result()
        changing.commit()
        running.result(timeout=30)

    first, second = events(live_url, paid[2])
    check_first_event(first, row)
    assert (before(second), after(second)["payment_status"]) == (after(first), "paid")
    check_entered(live_url, [each for each in paid if each != paid[2]], unpaid)


@pytest.mark.anyio
async def test_a_key_from_before_is_known(live_url: str) -> None:
    """Nobody knows which fields its request had, but what it wrote."""
    orders = Orders(live_url)
    order_id, other_id = orders.add(**PAYMENT), orders.add()
    migrations.up(live_url)
    kept = orders.row(order_id), orders.row(other_id), events(live_url)
    async with opened(live_url) as database:
        repo = OrderRepository(database)
        key = {"payment_idempotency_key": "evt_1"}
        for params in (PAYMENT, key, key | {"payment_status": "paid"}):
            update = await repo.update_payment_info(order_id, params, Origin("again"))
            assert update.replayed
            assert update.order._asdict() == kept[0]
        for params in (PAYMENT | {"payment_status": "refunded"}, key | {"payment_provider": "x"}):
            with pytest.raises(IdempotencyKeyReused) as caught:
                await repo.update_payment_info(order_id, params, Origin("other"))
            assert caught.value.same_order
        with pytest.raises(IdempotencyKeyReused) as caught:
            await repo.update_payment_info(other_id, PAYMENT, Origin("other"))
        assert not caught.value.same_order

    assert (orders.row(order_id), orders.row(other_id), events(live_url)) == kept
