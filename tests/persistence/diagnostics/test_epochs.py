"""What a history that came from another cluster needs, and the epoch that `new-history` opens."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import asyncpg
import psycopg
import pytest

from persistence import decision
from persistence.diagnostics import Fault
from persistence.diagnostics.epochs import check_history
from persistence.dsn import asyncpg_dsn
from persistence.errors import MaintenanceError
from persistence.models import Origin, etag_of
from persistence.new_history import Moved, Opened, open_epoch, reason_for_epoch
from persistence.orders import OrderRepository
from persistence.update_statement import Recorded, Rules, arguments, statement
from persistence.update_terms import Shape
from tests.support import databases
from tests.support.history import connect, events, only_event, opened, update
from tests.support.orders import Orders
from tests.support.waiting import eventually, lock_waits

pytestmark = pytest.mark.anyio

# As the rows of a dump: with the ids that they had.
INSERTS: Final = {
    "order_payment_events": (
        "INSERT INTO order_payment_events"
        " (id, order_id, storefront_id, transaction_id, payment_status_after)"
        " OVERRIDING SYSTEM VALUE SELECT %s, 1, 1, {}, 'paid'"
    ),
    "refused_payment_events": (
        "INSERT INTO refused_payment_events"
        " (id, order_id, transaction_id, digest, written, tells_of_money, reason, request_id)"
        " OVERRIDING SYSTEM VALUE SELECT %s, 1, {}, gen_random_uuid(), false, false, 'R', 'r'"
    ),
}
TABLES: Final = tuple(INSERTS)
FUTURE: Final = "(pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000000000)::text::xid8"
PAST: Final = "'5'"


def restore(url: str, table: str, *ids: int, transaction: str = FUTURE) -> None:
    """Insert rows as pg_restore does, which sets the sequence as well."""
    replicate(url, table, *ids, transaction=transaction)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", (table, max(ids)))


def replicate(url: str, table: str, *ids: int, transaction: str = FUTURE) -> None:
    """Insert rows as logical replication does."""
    with psycopg.connect(url, autocommit=True) as connection:
        for each in ids:
            connection.execute(INSERTS[table].format(transaction).encode(), (each,))


def open_elsewhere(url: str, table: str, last_id: int) -> None:
    """Add an epoch that another cluster has opened."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO payment_history_epochs"
            " (last_event_id, last_refused_event_id, system_identifier) VALUES (%s, %s, 1)",
            tuple(last_id if table == each else 0 for each in TABLES),
        )


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "", text)


async def fault(url: str) -> str:
    """Return what the service finds wrong with the history, by its own rights."""
    async with opened(url) as database:
        try:
            assert "sound" in await check_history(database)
        except Fault as error:
            assert str(error) == f"{error.problem}. Run `listings new-history`"
            # Tests of other databases of the server take transaction ids meanwhile.
            reason = await reason_for_epoch(url)
            assert reason is not None
            assert _without_numbers(reason) == _without_numbers(error.problem)
            return error.problem
    assert await reason_for_epoch(url) is None
    return ""


async def test_a_history_of_this_cluster_is_sound(database_url: str) -> None:
    assert await fault(database_url) == ""
    order_id = Orders(database_url).add(payment_status="paid")
    assert await fault(database_url) == ""
    await open_epoch(database_url)
    Orders(database_url).change(order_id, payment_status="refunded")
    assert await fault(database_url) == ""


@pytest.mark.parametrize("table", TABLES)
async def test_ids_of_the_future(database_url: str, table: str) -> None:
    restore(database_url, table, 1, 2)
    assert f"{table} has transaction ids of another cluster, up to 10" in await fault(database_url)
    last_ids = {"order_payment_events": (2, 0), "refused_payment_events": (0, 2)}[table]
    assert await open_epoch(database_url, "a drill") == Opened(2, *last_ids, [])
    assert await fault(database_url) == ""
    restore(database_url, table, 3)
    assert "of another cluster" in await fault(database_url)
    await open_epoch(database_url)
    assert await fault(database_url) == ""
    with connect(database_url) as connection:
        epochs = connection.execute(
            "SELECT id, reason, database_role, system_identifier = s AS is_own"
            " FROM payment_history_epochs, pg_control_system() c (v, r, s, m) ORDER BY id"
        ).fetchall()
    user = {"database_role": "listings", "is_own": True}
    assert epochs == [
        {"id": 1, "reason": None, **user},
        {"id": 2, "reason": "a drill", **user},
        {"id": 3, "reason": None, **user},
    ]


@pytest.mark.parametrize("table", TABLES)
async def test_ids_of_the_future_after_a_second_move(database_url: str, table: str) -> None:
    """The rows that the cluster in between has written are hidden by those of the first one."""
    restore(database_url, table, *range(1, 1200))
    open_elsewhere(database_url, table, 1199)
    middle = FUTURE.replace("1000000000", "500")
    restore(database_url, table, 1200, transaction=middle)
    assert "of another cluster" in await fault(database_url)
    await open_epoch(database_url)
    assert await fault(database_url) == ""


@pytest.mark.parametrize("table", TABLES)
async def test_a_move_to_a_cluster_that_is_ahead(database_url: str, table: str) -> None:
    """So is pg_upgrade: the cluster is another one, which has assigned all ids of the rows."""
    restore(database_url, table, 1, 2, transaction=PAST)
    open_elsewhere(database_url, table, 1)
    async with opened(database_url) as database:
        assert "sound" in await check_history(database)
    assert await reason_for_epoch(database_url) == "epoch 2 is of another cluster"
    await open_epoch(database_url)
    assert await fault(database_url) == ""


@pytest.mark.parametrize("table", TABLES)
async def test_an_id_that_is_of_a_transaction_in_progress(database_url: str, table: str) -> None:
    """Once it ends, the old row would be news; 1,200 others hide it."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
        assert row is not None
        restore(database_url, table, 1, transaction=f"'{row[0]}'")
        ended = "(pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1)::text::xid8"
        Orders(database_url).add()  # a later transaction, which has ended
        restore(database_url, table, *range(2, 1202), transaction=ended)
        open_elsewhere(database_url, table, 1201)
        assert "of another cluster" in await fault(database_url)
        await open_epoch(database_url)
        assert await fault(database_url) == ""


async def test_an_epoch_that_begins_in_the_future(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO payment_history_epochs (last_event_id, last_refused_event_id,"
            f" system_identifier, first_transaction_id) VALUES (0, 0, 1, {FUTURE})".encode()
        )
    assert "epoch 2 begins with a transaction that this" in await fault(database_url)
    await open_epoch(database_url)
    assert await fault(database_url) == ""


@pytest.mark.parametrize("table", TABLES)
async def test_a_sequence_behind_its_rows(database_url: str, table: str) -> None:
    replicate(database_url, table, 7, 8, transaction=PAST)
    assert await fault(database_url) == (
        f"the sequence public.{table}_id_seq is at 0, and {table} has ids up to 8: new events "
        "would get ids of old ones"
    )
    done = await open_epoch(database_url)
    assert done.moved == [Moved(f"public.{table}_id_seq", 0, 8)]
    assert await fault(database_url) == ""
    with psycopg.connect(database_url, autocommit=True) as connection:
        insert = INSERTS[table].replace("id, ", "", 1).replace("%s, ", "")
        row = connection.execute((insert.format(PAST) + " RETURNING id").encode()).fetchone()
    assert row == (9,)


@pytest.mark.parametrize("table", TABLES)
async def test_a_sequence_behind_its_epoch(database_url: str, table: str) -> None:
    """The rows with the highest ids need not be among those of the highest transaction ids."""
    open_elsewhere(database_url, table, 10)
    assert f"is at 0, and {table} has ids up to 10" in await fault(database_url)


async def test_no_epoch(database_url: str) -> None:
    """As where the schema was restored, and then the rows of some tables."""
    with psycopg.connect(database_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM payment_history_epochs")
    assert await fault(database_url) == "payment_history_epochs has no row"
    await open_epoch(database_url)
    assert await fault(database_url) == ""


async def test_the_sequences_of_orders_and_epochs(database_url: str) -> None:
    """That of orders is no fault: a shop may give the ids by another way."""
    Orders(database_url).add(id=500)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO payment_history_epochs (id, last_event_id, last_refused_event_id)"
            " OVERRIDING SYSTEM VALUE VALUES (2, 0, 0), (3, 0, 0)"
        )
    assert await fault(database_url) == ""
    done = await open_epoch(database_url)
    assert (done.epoch, done.moved) == (
        4,
        [
            Moved("public.orders_id_seq", 0, 500),
            Moved("public.payment_history_epochs_id_seq", 1, 3),
        ],
    )
    assert Orders(database_url).add() == 501


async def test_a_shop_with_a_sequence_of_its_own(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE orders ALTER COLUMN id DROP IDENTITY")
    Orders(database_url).add(id=500)
    assert (await open_epoch(database_url)).moved == []


async def test_no_event_is_written_while_an_epoch_is_opened(database_url: str) -> None:
    """An event that is not committed yet belongs to the epoch, or comes after it."""
    orders = Orders(database_url)
    first, second = orders.add(), orders.add()
    with ThreadPoolExecutor(2) as pool, psycopg.connect(database_url) as writer:
        writer.execute("UPDATE orders SET payment_status = 'paid' WHERE id = %s", (first,))
        running = pool.submit(_open_epoch, database_url)
        eventually(lambda: lock_waits(database_url) == 1)
        later = pool.submit(orders.change, second, payment_status="paid")
        eventually(lambda: lock_waits(database_url) == 2)
        writer.commit()
        assert running.result(20).last_event_id == only_event(database_url, first)["id"]
        later.result(20)
    assert only_event(database_url, second)["id"] > only_event(database_url, first)["id"]


def _open_epoch(url: str) -> Opened:
    return asyncio.run(open_epoch(url))


async def test_a_transaction_that_does_not_end(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistence.new_history._LOCK_TIMEOUT", "100ms")
    order_id = Orders(database_url).add()
    with psycopg.connect(database_url) as writer:
        writer.execute("UPDATE orders SET payment_status = 'paid' WHERE id = %s", (order_id,))
        with pytest.raises(MaintenanceError, match="held a lock on the tables for more than 100ms"):
            await open_epoch(database_url)
    assert Orders(database_url).value("SELECT count(*) FROM payment_history_epochs") == 1


async def test_another_user_than_the_owner(database_url: str) -> None:
    with pytest.raises(MaintenanceError, match="Only the owner of the tables may"):
        await open_epoch(databases.for_service(database_url))


# An order of another cluster may have the id of any transaction as its version.


@pytest.mark.parametrize("by_hand", [False, True], ids=["service", "by hand"])
async def test_orders_with_versions_of_the_future(database_url: str, by_hand: bool) -> None:
    """Each change is an event and another version, and an etag of before is compared by it."""
    orders = Orders(database_url)
    first = orders.value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint") + 20
    order_id = orders.add(payment_status="pending", payment_provider="stripe")
    etags: list[Any] = []
    async with opened(database_url) as database:
        repository = OrderRepository(database)
        for number in range(3):
            version = first + 10_000 * number
            await _restore_version(database_url, order_id, version)
            etags.append(f"{version:x}")
            if by_hand:
                orders.change(order_id, payment_transaction_id=f"txn_{number}")
            else:
                params = {"payment_transaction_id": f"txn_{number}"}
                if number == 2:
                    params |= {"etag": etags[-1]}
                await repository.update_payment_info(order_id, update(params), Origin("request"))
            etags.append(etag_of(await repository.get(order_id)))
    assert len(set(etags)) == 6
    assert [each["payment_transaction_id_after"] for each in events(database_url, order_id)] == [
        None,
        "txn_0",
        "txn_1",
        "txn_2",
    ]


async def _restore_version(url: str, order_id: int, version: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "UPDATE orders SET payment_version = %s::text::xid8 WHERE id = %s", (version, order_id)
        )


async def test_an_update_by_the_transaction_that_an_order_has_as_its_version(
    database_url: str,
) -> None:
    """It comes once for each restored order, in the transaction with that id."""
    order_id = Orders(database_url).add()
    shape = Shape(("payment_transaction_id",), is_rich=False, is_scoped=False)
    rules = Rules(decision.refusals(None), None, is_reversal=False, version=None)
    recorded = Recorded("request", "caller", 32, "", "")
    connection = await asyncpg.connect(dsn=asyncpg_dsn(database_url))
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")
            version = await connection.fetchval(
                "UPDATE orders SET payment_version = pg_current_xact_id() RETURNING payment_version"
            )
            await connection.execute("SET LOCAL session_replication_role = origin")
            values = arguments(shape, update({"payment_transaction_id": "t"}), rules, recorded, ())
            row = await connection.fetchrow(statement(shape), order_id, *values)
            assert row is not None
            assert row["payment_version"] not in {None, 0, version}
    finally:
        await connection.close()
    assert only_event(database_url, order_id)["payment_transaction_id_after"] == "t"
