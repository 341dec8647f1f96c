"""The migrations: up, down, interrupted, concurrent, and on a table that is in use."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from persistence import migrations, schema
from persistence.errors import MigrationError, SchemaOutdated
from persistence.roles import APPLICATION
from tests.support import databases
from tests.support.objects import catalog
from tests.support.orders import Orders

FIRST, SECOND = "20251220000001_create_orders", "20251220000002_add_order_payment_fields"
ALL = [
    FIRST,
    SECOND,
    "20261123000001_create_order_payment_events",
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
LATER = ALL[1:]

INDEXES = {
    "idx_orders_payment_session": "INDEX {} ON public.orders USING btree (payment_session_id)",
    "idx_orders_idempotency_key": (
        "UNIQUE INDEX {} ON public.orders USING btree (payment_idempotency_key)"
    ),
    "idx_orders_provider_session": (
        "INDEX {} ON public.orders USING btree (payment_provider, payment_session_id)"
    ),
    "idx_orders_payment_intent": "INDEX {} ON public.orders USING btree (payment_intent_id)",
}


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def indexes(url: str) -> dict[str, tuple[str, bool]]:
    return {name: (text, valid) for name, text, valid, _ in catalog(url)["indexes"]}


def test_up_down_and_up_again_leave_the_same_schema(empty_database_url: str) -> None:
    url = empty_database_url
    nothing = catalog(url)
    assert migrations.up(url) == ALL
    full = catalog(url)
    assert migrations.down(url, "20251220000001") == LATER[::-1]
    first = catalog(url)
    assert migrations.down(url, "0") == [FIRST]
    assert catalog(url) == nothing

    assert migrations.up(url) == ALL
    assert catalog(url) == full
    assert migrations.down(url, FIRST) == LATER[::-1]
    assert catalog(url) == first
    assert migrations.up(url) == LATER
    assert catalog(url) == full
    assert migrations.up(url) == []


def test_the_privileges_of_the_service(database_url: str) -> None:
    """Exactly these; PUBLIC may not execute the functions that record history."""
    assert {right[1:] for right in catalog(database_url)["rights"] if right[0] == "public"} == {
        ("-", "USAGE"),
        (APPLICATION, "USAGE"),
    }
    assert [right for right in catalog(database_url)["rights"] if right[0] != "public"] == [
        ("_yoyo_migration", APPLICATION, "SELECT"),
        ("is_other_payment_request", "-", "EXECUTE"),
        ("is_other_payment_request", APPLICATION, "EXECUTE"),
        ("order_payment_events", APPLICATION, "SELECT"),
        ("order_payment_events_id_seq", APPLICATION, "SELECT"),
        ("orders", APPLICATION, "SELECT"),
        ("orders.captured_amount", APPLICATION, "UPDATE"),
        ("orders.contested_from", APPLICATION, "UPDATE"),
        ("orders.payment_event_time", APPLICATION, "UPDATE"),
        ("orders.payment_idempotency_key", APPLICATION, "UPDATE"),
        ("orders.payment_intent_id", APPLICATION, "UPDATE"),
        ("orders.payment_intent_stale", APPLICATION, "UPDATE"),
        ("orders.payment_provider", APPLICATION, "UPDATE"),
        ("orders.payment_session_id", APPLICATION, "UPDATE"),
        ("orders.payment_session_stale", APPLICATION, "UPDATE"),
        ("orders.payment_state", APPLICATION, "UPDATE"),
        ("orders.payment_status", APPLICATION, "UPDATE"),
        ("orders.payment_status_since", APPLICATION, "UPDATE"),
        ("orders.payment_transaction_id", APPLICATION, "UPDATE"),
        ("orders.payment_version", APPLICATION, "UPDATE"),
        ("orders.refunded_amount", APPLICATION, "UPDATE"),
        ("orders.updated_at", APPLICATION, "UPDATE"),
        ("payment_amounts_disagree", "-", "EXECUTE"),
        ("payment_event_texts_bounded", "-", "EXECUTE"),
        ("payment_history_epochs", APPLICATION, "SELECT"),
        ("refuse_change_of_order_payment_events", "-", "EXECUTE"),
        ("refuse_change_of_payment_history_epochs", "-", "EXECUTE"),
        ("refuse_change_of_refused_payment_events", "-", "EXECUTE"),
        ("refused_payment_events", APPLICATION, "INSERT"),
        ("refused_payment_events", APPLICATION, "SELECT"),
        ("refused_payment_events.last_refused_at", APPLICATION, "UPDATE"),
        ("refused_payment_events.times", APPLICATION, "UPDATE"),
        ("refused_payment_events_id_seq", APPLICATION, "SELECT"),
        ("status_words", APPLICATION, "SELECT"),
    ]


def test_the_look_at_a_key_has_a_snapshot_of_its_own(database_url: str) -> None:
    """A STABLE function would not see an event that is committed while its statement waits."""
    found = "SELECT provolatile FROM pg_proc WHERE proname = 'is_other_payment_request'"
    assert Orders(database_url).value(found) == "v"


def test_the_columns_and_indexes_of_a_payment(database_url: str) -> None:
    columns = {
        name: (kind, required)
        for table, name, kind, required, *_ in catalog(database_url)["columns"]
        if table == "orders"
    }
    assert {name: kind for name, kind in columns.items() if name.startswith("payment_")} == {
        "payment_provider": ("character varying(50)", False),
        "payment_session_id": ("character varying(255)", False),
        "payment_intent_id": ("character varying(255)", False),
        "payment_idempotency_key": ("character varying(255)", False),
        "payment_status": ("character varying(50)", True),
        "payment_transaction_id": ("character varying(255)", False),
        "payment_event_time": ("timestamp with time zone", False),
        "payment_status_since": ("timestamp with time zone", False),
        "payment_version": ("xid8", False),
        "payment_state": ("smallint", False),
        "payment_session_stale": ("boolean", True),
        "payment_intent_stale": ("boolean", True),
    }
    for name, kind in {
        "captured_amount": "bigint",
        "refunded_amount": "bigint",
        "contested_from": "smallint",
    }.items():
        assert columns[name] == (kind, False)
    found = indexes(database_url)
    for name, definition in INDEXES.items():
        assert found[name] == ("CREATE " + definition.format(name), True)


def test_indexes_of_both_tables_of_events_are_named_alike(database_url: str) -> None:
    """By the column that they begin with, where both have it."""
    names: dict[str, dict[str, str]] = {"order_payment_events": {}, "refused_payment_events": {}}
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            """
            SELECT relname, attname, indexrelid::regclass::text FROM pg_index
            JOIN pg_class ON pg_class.oid = indrelid
            JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
            WHERE relname = ANY (%s) AND NOT indisprimary
            """,
            (list(names),),
        )
        for table, column, index in found:
            name = index.removeprefix(f"idx_{table}_")
            names[table][column.removesuffix("_after")] = name
    taken, refused = names.values()
    common = taken.keys() & refused.keys()
    assert len(common) >= 2
    assert {column: taken[column] for column in common} == {
        column: refused[column] for column in common
    }


def test_an_existing_column_keeps_its_values(empty_database_url: str) -> None:
    url = empty_database_url
    migrations.up(url)
    migrations.down(url, FIRST)
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE orders ADD COLUMN payment_provider VARCHAR(50)")
    order_id = Orders(url).add(payment_provider="stripe")

    migrations.up(url)

    assert Orders(url).row(order_id)["payment_provider"] == "stripe"


@pytest.mark.parametrize("name", INDEXES)
def test_an_invalid_index_is_built_again(empty_database_url: str, name: str) -> None:
    url = empty_database_url
    migrations.up(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (name,)
        )
        connection.execute("DELETE FROM _yoyo_migration WHERE migration_id = %s", (SECOND,))
    assert indexes(url)[name][1] is False

    assert migrations.up(url) == [SECOND]

    assert all(indexes(url)[each][1] for each in INDEXES)


def test_a_failed_unique_index_keeps_the_columns_and_their_values(empty_database_url: str) -> None:
    """Duplicate keys make the unique index fail after the columns are added."""
    url = empty_database_url
    migrations.up(url)
    migrations.down(url, FIRST)
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE orders ADD COLUMN payment_idempotency_key VARCHAR(255)")
    orders = Orders(url)
    first, second = (orders.add(payment_idempotency_key="twice") for _ in range(2))

    with pytest.raises(MigrationError, match="twice"):
        migrations.up(url)

    assert orders.row(first)["payment_idempotency_key"] == "twice"
    assert [each.id for each in migrations.status(url) if each.applied_at] == [FIRST]
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE orders SET payment_idempotency_key = NULL WHERE id = %s", (second,)
        )
    assert migrations.up(url) == LATER
    assert indexes(url)["idx_orders_idempotency_key"][1] is True
    assert orders.row(first)["payment_idempotency_key"] == "twice"


def test_a_locked_table_makes_the_migration_fail(empty_database_url: str) -> None:
    url = empty_database_url
    migrations.up(url)
    migrations.down(url, FIRST)
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE orders IN ACCESS SHARE MODE")
        with pytest.raises(MigrationError, match="held a lock"):
            migrations.up(url)
    assert migrations.up(url) == LATER


def test_a_rollback_that_fails_for_a_lock_changes_nothing(empty_database_url: str) -> None:
    """Above all, it keeps the unique index: without it, two orders could get the same key."""
    url = empty_database_url
    migrations.up(url)
    migrations.down(url, SECOND)
    full = catalog(url)
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE orders IN ACCESS SHARE MODE")
        with pytest.raises(MigrationError, match="held a lock"):
            migrations.down(url, FIRST)
    assert catalog(url) == full


def test_the_lock_row_of_a_killed_run_does_not_block_the_next(empty_database_url: str) -> None:
    url = empty_database_url
    migrations.up(url)
    migrations.down(url, FIRST)
    with psycopg.connect(url) as connection:  # the row that a killed run leaves
        connection.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")

    assert migrations.up(url) == LATER


def test_the_table_stays_writable_while_indexes_are_built(empty_database_url: str) -> None:
    url = empty_database_url
    migrations.up(url)
    migrations.down(url, FIRST)
    orders = Orders(url)
    order_id = orders.add()
    with ThreadPoolExecutor(1) as pool, psycopg.connect(url) as reader:
        running = None
        try:
            # An old snapshot, which CREATE INDEX CONCURRENTLY waits for without blocking writers.
            reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            reader.execute("SELECT 1 FROM pg_class LIMIT 1")
            running = pool.submit(migrations.up, url)
            while not query(
                url,
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
                " AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'",
            ):
                assert not running.done(), running.result()
            with psycopg.connect(url) as writer:
                writer.execute("SET statement_timeout = '2s'")
                writer.execute(
                    "UPDATE orders SET payment_status = 'paid' WHERE id = %s", (order_id,)
                )
        finally:
            reader.rollback()
        assert running.result(timeout=30) == LATER
    assert orders.row(order_id)["payment_status"] == "paid"


def test_processes_that_migrate_concurrently(empty_database_url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        done = pool.map(migrations.up, [empty_database_url] * 4)

    assert sorted(done, key=len) == [[], [], [], ALL]
    assert all(each.applied_at for each in migrations.status(empty_database_url))


def test_a_user_id_without_a_passwd_entry_can_migrate(empty_database_url: str) -> None:
    """As in a container that runs with a numeric user id."""
    script = """
import os, pwd, sys
from persistence import migrations

def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = unknown
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
print(migrations.up(sys.argv[1]))
"""
    command = [sys.executable, "-c", script, empty_database_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert SECOND in done.stdout, done.stderr


@pytest.mark.parametrize("version", ["1", "2025", "20251220000003", "", "--"])
def test_an_unknown_version_is_an_error(database_url: str, version: str) -> None:
    with pytest.raises(MigrationError, match="there is no migration"):
        migrations.down(database_url, version)
    assert all(each.applied_at for each in migrations.status(database_url))


def test_an_unreachable_server_is_an_error() -> None:
    with pytest.raises(MigrationError):
        migrations.up("postgresql://nobody@127.0.0.1:1/nothing")


def test_status_of_an_empty_database(empty_database_url: str) -> None:
    assert migrations.status(empty_database_url) == [migrations.Status(name, None) for name in ALL]


@pytest.mark.anyio
@pytest.mark.parametrize("applied", [0, 4, len(ALL) - 1, len(ALL)])
async def test_the_service_requires_every_migration(empty_database_url: str, applied: int) -> None:
    if applied:
        migrations.up(empty_database_url)
        with psycopg.connect(empty_database_url) as connection:
            connection.execute(
                "DELETE FROM _yoyo_migration WHERE migration_id = ANY (%s)", (ALL[applied:],)
            )
    async with databases.pool(empty_database_url, max_connections=1) as database:
        if applied == len(ALL):
            await schema.require_current(database)
            return
        with pytest.raises(SchemaOutdated) as caught:
            await schema.require_current(database)
        assert caught.value.missing == ALL[applied:]
