"""The migration that creates the payment history and enters existing payments into it."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest
from yoyo import read_migrations

from persistence import migrations
from persistence.errors import IdempotencyKeyReused
from persistence.models import Origin
from persistence.orders import OrderRepository
from persistence.schema import migrations_directory
from tests.support.history import (
    PAYMENT,
    UNPAID,
    after,
    before,
    check_first_event,
    connect,
    events,
    only_event,
    opened,
    update,
)
from tests.support.orders import Orders

BEFORE_LEDGER: Final = "20251220000002"
LEDGER: Final = "20261123000001_create_order_payment_events"
LATER: Final = [
    "20261123000002_index_orders_for_lists",
    "20261125000001_grant_rights_to_listings_app",
    "20261130000001_create_status_words",
    "20261130000002_add_payment_states",
    "20261130000003_create_refused_payment_events",
    "20261130000004_index_payment_states",
    "20261130000005_index_replaced_references",
    "20261201000001_create_payment_history_epochs",
    "20261201000002_check_ledger_texts",
]


class Killed(BaseException):
    """Raised to interrupt a migration."""


@pytest.fixture
def live_url(database_url: str) -> str:
    """The URL of a database whose schema is older than the payment history."""
    assert migrations.down(database_url, BEFORE_LEDGER) == [*LATER[::-1], LEDGER]
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
    """Check that exactly the orders with a payment have their first event."""
    for order_id in paid:
        check_first_event(only_event(url, order_id), Orders(url).row(order_id))
    assert [each for order_id in unpaid for each in events(url, order_id)] == []


def ledger_module() -> Any:
    for migration in read_migrations(str(migrations_directory())):
        if migration.id == LEDGER:
            migration.load()
            return migration.module
    raise AssertionError(f"there is no {LEDGER}")


def run_until_payments_are_entered(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Interrupt the migration when it begins to enter payments, and return its module."""
    module = ledger_module()

    def killed(_connection: object) -> None:
        raise Killed

    # As yoyo connects, without our row factory.
    with monkeypatch.context() as patch, psycopg.connect(url, autocommit=True) as connection:
        patch.setattr(module, "_enter_payments", killed)
        with pytest.raises(Killed):
            module.create(connection)
    return module


def test_existing_payments_are_entered(live_url: str) -> None:
    paid, unpaid = add_orders(live_url)
    rows = {order_id: Orders(live_url).row(order_id) for order_id in (*paid, *unpaid)}

    migrations.up(live_url)

    check_entered(live_url, paid, unpaid)
    for order_id, row in rows.items():  # later migrations have added columns
        assert Orders(live_url).row(order_id).items() >= row.items()
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
def test_an_interrupted_run_can_be_repeated(live_url: str, undo: str) -> None:
    paid, unpaid = add_orders(live_url)
    migrations.up(live_url)
    migrations.down(live_url, LEDGER)
    with connect(live_url) as connection:
        connection.execute(ledger_module()._record("order_payment_events", entering=True))
        connection.execute(undo.encode())
        connection.execute("DELETE FROM _yoyo_migration WHERE migration_id = %s", (LEDGER,))

    assert migrations.up(live_url) == [LEDGER, *LATER]

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


def test_a_payment_changed_before_the_migration_enters_it(
    live_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trigger enters the old values before it records the change, unless there are none."""
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


def test_a_payment_changed_while_the_migration_enters_it(
    live_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The migration waits for the row lock, and then finds the payment entered by the trigger."""
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
async def test_idempotency_keys_of_entered_payments_are_honoured(live_url: str) -> None:
    """The fields of the original request are unknown: the values it wrote are compared."""
    orders = Orders(live_url)
    order_id, other_id = orders.add(**PAYMENT), orders.add()
    migrations.up(live_url)
    kept = orders.row(order_id), orders.row(other_id), events(live_url)
    async with opened(live_url) as database:
        repo = OrderRepository(database)
        key = {"payment_idempotency_key": "evt_1"}
        for params in (PAYMENT, key, key | {"payment_status": "paid"}):
            again = update(params)
            made = await repo.update_payment_info(order_id, again, Origin("again"))
            assert made.replayed
            assert made.order._asdict() == kept[0]
        with pytest.raises(IdempotencyKeyReused):
            await repo.update_payment_info(other_id, update(PAYMENT), Origin("other"))
        assert (orders.row(order_id), orders.row(other_id), events(live_url)) == kept

        # With other values, it is another event.
        refunded = update(PAYMENT | {"payment_status": "refunded"})
        for replayed in (False, True):
            made = await repo.update_payment_info(order_id, refunded, Origin("other"))
            assert made.replayed is replayed
    *_, event = events(live_url, order_id)
    assert (event["idempotency_key"], event["further_idempotency_key"]) == (None, "evt_1")
