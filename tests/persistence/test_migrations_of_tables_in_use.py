"""The migrations to the states of payments, while others read and write orders."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from persistence import migration_support, migrations
from persistence.errors import MigrationError
from persistence.payment_states import PaymentState
from tests.support import version_0_1
from tests.support.history import connect, events
from tests.support.objects import catalog
from tests.support.orders import Orders
from tests.support.state_migrations import (
    MIGRATIONS,
    STATES,
    derived,
    module,
)
from tests.support.waiting import eventually, lock_waits


@contextmanager
def open_reader(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Yield a transaction that has read ``orders``, which ALTER TABLE waits for."""
    with psycopg.connect(url) as reader:
        reader.execute("SELECT FROM orders LIMIT 1")
        yield reader
        reader.rollback()


def waits_for_the_table(url: str) -> bool:
    with connect(url) as observer:
        waiting = observer.execute(
            "SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND query LIKE '%ACCESS EXCLUSIVE%'"
        )
        return waiting.fetchone() is not None


@pytest.mark.parametrize("direction", ["up", "down"])
def test_writers_do_not_wait_while_the_migration_waits_for_a_reader(
    live_url: str, direction: str
) -> None:
    """Neither other writers, nor the reader itself, once it writes."""
    orders = Orders(live_url)
    order_id = orders.add()
    if direction == "down":
        migrations.up(live_url)
        migrations.down(live_url, STATES)  # the later ones wait for readers, and no writer for them
    with ThreadPoolExecutor(1) as pool, open_reader(live_url) as reader:
        if direction == "up":
            running = pool.submit(migrations.up, live_url)
        else:
            running = pool.submit(migrations.down, live_url, version_0_1.MIGRATION)
        eventually(lambda: waits_for_the_table(live_url))
        with connect(live_url) as writer:
            writer.execute("SET statement_timeout = '2s'")
            writer.execute("UPDATE orders SET payment_status = 'failed'")
        eventually(lambda: waits_for_the_table(live_url))
        reader.execute("SET statement_timeout = '2s'")
        reader.execute("UPDATE orders SET payment_status = 'paid'")
        reader.commit()
        assert STATES in running.result(timeout=30)

    assert [each["payment_status_after"] for each in events(live_url, order_id)] == [
        "failed",
        "paid",
    ]


def test_without_a_gap_between_readers_nothing_is_changed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_support, "_CHANGE_SECONDS", 0.0)
    migrations.down(database_url, STATES)
    kept = catalog(database_url)
    with open_reader(database_url), pytest.raises(MigrationError, match="held a lock"):
        migrations.down(database_url, version_0_1.MIGRATION)
    assert catalog(database_url) == kept


def test_a_payment_that_changes_while_it_is_classified(database_url: str) -> None:
    """The classification waits for the row, and takes the new word."""
    order_id = Orders(database_url).add(payment_status="paid")
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(database_url, autocommit=True) as classifying,
        psycopg.connect(database_url) as changing,
    ):
        changing.execute("UPDATE orders SET payment_status = 'refunded'")
        running = pool.submit(module(STATES)._classify, classifying)
        eventually(lambda: lock_waits(database_url))
        changing.commit()
        running.result(timeout=30)
    assert derived(database_url, order_id)["payment_state"] == PaymentState.REFUNDED
    assert len(events(database_url, order_id)) == 2


def test_autovacuum_gives_way(live_url: str) -> None:
    """Its lock is that of the first statement, and stays while the table is vacuumed."""
    with ThreadPoolExecutor(1) as pool, psycopg.connect(live_url) as vacuuming:
        vacuuming.execute("LOCK TABLE orders IN SHARE UPDATE EXCLUSIVE MODE")
        running = pool.submit(migrations.up, live_url)
        eventually(lambda: lock_waits(live_url))
        with connect(live_url) as writer:
            writer.execute("SET statement_timeout = '50ms'")
            for _ in range(20):
                writer.execute("UPDATE orders SET payment_status = 'failed'")
        vacuuming.rollback()
        assert running.result(timeout=30) == list(MIGRATIONS)


def waits_since(url: str) -> set[str]:
    """Return when each transaction began that waits for a lock to classify orders."""
    with connect(url) as observer:
        rows = observer.execute(
            "SELECT xact_start::text FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND query LIKE '%FOR NO KEY UPDATE%'"
        ).fetchall()
    return {row["xact_start"] for row in rows}


@pytest.mark.parametrize("lock", ["row", "table"])
def test_the_classification_tries_again_while_others_hold_a_lock(
    database_url: str, lock: str
) -> None:
    """However often, and meanwhile the other orders of the batch can be paid."""
    orders = Orders(database_url)
    free, locked = (orders.add(payment_status="paid") for _ in range(2))
    at_once = module(STATES)
    at_once._PASSES = 1
    began: set[str] = set()

    def tried(times: int) -> bool:
        began.update(waits_since(database_url))
        return len(began) >= times

    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(database_url, autocommit=True) as classifying,
        psycopg.connect(database_url) as holder,
    ):
        if lock == "row":
            holder.execute("SELECT FROM orders WHERE id = %s FOR UPDATE", (locked,))
        else:
            holder.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
        running = pool.submit(at_once._classify, classifying)
        eventually(lambda: tried(2))
        if lock == "row":
            with connect(database_url) as writer:
                writer.execute("SET statement_timeout = '2s'")
                writer.execute(
                    "UPDATE orders SET payment_status = 'refunded' WHERE id = %s", (free,)
                )
        eventually(lambda: tried(3))
        holder.rollback()
        running.result(timeout=30)
    assert derived(database_url, locked)["payment_state"] == PaymentState.PAID
    assert derived(database_url, free)["payment_state"] is not None


def test_a_deadlock_with_another_transaction(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends the transaction that finds it, which is the one that waits last."""
    orders = Orders(database_url)
    first, second, third = (orders.add(payment_status="paid") for _ in range(3))
    at_once = module(STATES)
    at_once._PASSES = 1
    before = deadlocks(database_url)
    # So that it is not the time-out that ends the wait.
    monkeypatch.setattr(migration_support, "_ROW_LOCK_TIMEOUT", "1min")
    update = "UPDATE orders SET payment_status = 'refunded' WHERE id = %s"
    with (
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(database_url, autocommit=True) as classifying,
        psycopg.connect(database_url) as holder,
        psycopg.connect(database_url) as writer,
    ):
        classifying.execute("SET deadlock_timeout = '1ms'")
        writer.execute("SET deadlock_timeout = '1min'")
        holder.execute(update, (second,))
        writer.execute(update, (third,))
        running = pool.submit(at_once._classify, classifying)  # locks the first, then waits
        eventually(lambda: lock_waits(database_url) == 1)
        writing = pool.submit(writer.execute, update, (first,))
        eventually(lambda: lock_waits(database_url) == 2)
        holder.commit()
        writing.result(timeout=30)
        writer.commit()
        running.result(timeout=30)
    assert [derived(database_url, each)["payment_state"] for each in (first, second, third)] == [
        PaymentState.REFUNDED
    ] * 3
    eventually(lambda: deadlocks(database_url) == before + 1)


def deadlocks(url: str) -> int:
    found = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    return int(Orders(url).value(found))
