"""The repository, on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path

import psycopg
import pytest

from persistence import errors
from persistence.models import PAYMENT_COLUMNS, Order, Origin, PaymentUpdate
from persistence.orders import OrderRepository
from tests.support import databases, wire
from tests.support.history import update
from tests.support.orders import Orders
from tests.support.waiting import eventually_async, lock_waits

pytestmark = pytest.mark.anyio

ORIGIN = Origin("test")

DERIVED = {
    *("updated_at", "payment_state", "payment_status_since", "payment_version"),
    *("payment_session_stale", "payment_intent_stale"),
}
"""What an update changes besides the columns that it sets."""


@asynccontextmanager
async def repository(url: str, **limits: float) -> AsyncIterator[OrderRepository]:
    async with databases.pool(url, **limits) as database:
        yield OrderRepository(database)


async def test_every_set_of_fields(database_url: str) -> None:
    """For all 63 sets: the given fields are written, the others stay, and the row is returned."""
    orders = Orders(database_url)
    order_id = orders.add()
    async with repository(database_url) as repo:
        for size in range(1, len(PAYMENT_COLUMNS) + 1):
            for columns in combinations(PAYMENT_COLUMNS, size):
                before = orders.row(order_id)
                params = {name: f"{name[8:13]} {before['updated_at']}" for name in columns}

                returned = await repo.update_payment_info(order_id, update(params), ORIGIN)

                after = orders.row(order_id)
                assert after.items() >= params.items()
                kept = before.keys() - params.keys() - DERIVED
                assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
                assert after["updated_at"] > before["updated_at"]
                assert after["payment_version"] != before["payment_version"]
                assert returned.order._asdict() == after


async def test_an_update_is_one_round_trip(database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()
    async with (
        wire.counted(database_url, tmp_path) as (url, counts),
        repository(url, max_connections=1) as repo,
    ):
        for key in ({}, {"payment_idempotency_key": "key"}):
            params = {"payment_status": "processing"} | key
            await repo.update_payment_info(order_id, update(params), ORIGIN)
            before = counts.round_trips
            assert before > 0
            for number in range(10):
                used = update(dict.fromkeys(params, f"{number}") | {"payment_status": "processing"})
                await repo.update_payment_info(order_id, used, ORIGIN)
            assert counts.round_trips - before == 10


async def test_an_invalid_update_raises_its_error_and_writes_nothing(database_url: str) -> None:
    orders = Orders(database_url)
    first, second = orders.add(payment_idempotency_key="taken"), orders.add()
    before = orders.row(first), orders.row(second)
    async with repository(database_url) as repo:
        with pytest.raises(errors.OrderNotFound, match="there is no order 404"):
            await repo.update_payment_info(404, PaymentUpdate(payment_status="paid"), ORIGIN)
        with pytest.raises(errors.IdempotencyKeyReused):
            await repo.update_payment_info(
                second,
                PaymentUpdate(payment_status="paid", payment_idempotency_key="taken"),
                ORIGIN,
            )
        for value in ("a\0b", "\ud800", "x" * 51):
            with pytest.raises(errors.InvalidValue):
                await repo.update_payment_info(second, PaymentUpdate(payment_status=value), ORIGIN)
        with pytest.raises(errors.InvalidValue):
            await repo.update_payment_info(2**63, PaymentUpdate(payment_status="paid"), ORIGIN)
        for nothing in (PaymentUpdate(), PaymentUpdate(currency="EUR", etag="0")):
            with pytest.raises(ValueError, match="no payment column"):
                await repo.update_payment_info(second, nothing, ORIGIN)
    assert (orders.row(first), orders.row(second)) == before


async def test_updated_at_moves_even_when_the_clock_does_not(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE orders SET updated_at = now() + interval '1 hour'")
    before = orders.row(order_id)["updated_at"]
    async with repository(database_url) as repo:
        order = (
            await repo.update_payment_info(order_id, PaymentUpdate(payment_status="paid"), ORIGIN)
        ).order
    assert order.updated_at > before


async def test_a_statement_that_takes_too_long_is_cancelled(database_url: str) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    async with repository(database_url, statement_timeout=0.2, max_connections=1) as repo:
        with psycopg.connect(database_url) as holder:
            holder.execute("SELECT FROM orders FOR UPDATE")
            with pytest.raises(errors.DatabaseTimeout):
                await repo.update_payment_info(
                    order_id, PaymentUpdate(payment_status="late"), ORIGIN
                )
            await eventually_async(lambda: lock_waits(database_url) == 0)
        # The only connection is usable again, and the update was not applied.
        order = (
            await repo.update_payment_info(
                order_id, PaymentUpdate(payment_provider="stripe"), ORIGIN
            )
        ).order
        assert order.payment_status == "pending"


async def test_the_wait_for_a_connection_has_a_timeout(database_url: str) -> None:
    """Otherwise each update would wait for all those queued before it."""
    order_id = Orders(database_url).add()
    async with repository(database_url, statement_timeout=0.2, max_connections=1) as repo:
        with psycopg.connect(database_url) as holder:
            holder.execute("SELECT FROM orders FOR UPDATE")
            updates = [
                repo.update_payment_info(order_id, PaymentUpdate(payment_status="x"), ORIGIN)
                for _ in "12345"
            ]
            failures = await asyncio.gather(*updates, return_exceptions=True)
    assert all(isinstance(each, errors.DatabaseTimeout) for each in failures)


async def test_the_pool_closes_while_the_server_does_not_answer(
    database_url: str, tmp_path: Path
) -> None:
    order_id = Orders(database_url).add()
    async with wire.counted(database_url, tmp_path) as (url, counts):
        try:
            async with repository(url, statement_timeout=0.2) as repo:
                await repo.update_payment_info(
                    order_id, PaymentUpdate(payment_status="paid"), ORIGIN
                )
                counts.answering.clear()
        finally:
            counts.answering.set()


async def test_cancelled_calls_leak_no_connection(database_url: str) -> None:
    orders = Orders(database_url)
    order_ids = [orders.add() for _ in range(4)]
    async with repository(database_url, max_connections=2) as repo:
        for round_ in range(100):
            tasks = [
                asyncio.create_task(
                    repo.update_payment_info(each, PaymentUpdate(payment_status="x"), ORIGIN)
                )
                for each in order_ids
            ]
            for _ in range(round_ % 12):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5):
            await asyncio.gather(
                *(
                    repo.update_payment_info(each, PaymentUpdate(payment_status="y"), ORIGIN)
                    for each in order_ids
                )
            )
    assert {orders.row(each)["payment_status"] for each in order_ids} == {"y"}


async def test_a_cancel_returns_at_once_while_the_server_does_not_answer(
    database_url: str, tmp_path: Path
) -> None:
    order_id = Orders(database_url).add()
    async with (
        wire.counted(database_url, tmp_path) as (url, counts),
        repository(url, max_connections=1) as repo,
    ):
        await repo.update_payment_info(order_id, PaymentUpdate(payment_status="x"), ORIGIN)
        counts.answering.clear()
        update = asyncio.create_task(
            repo.update_payment_info(order_id, PaymentUpdate(payment_status="y"), ORIGIN)
        )
        await asyncio.sleep(0.05)
        async with asyncio.timeout(0.5):
            update.cancel()
            await asyncio.gather(update, return_exceptions=True)
        counts.answering.set()
        await repo.update_payment_info(order_id, PaymentUpdate(payment_status="z"), ORIGIN)


@pytest.mark.parametrize(
    ("sqlstate", "times", "outcome", "tries"),
    [
        ("40001", 4, None, 5),
        ("40P01", 4, None, 5),
        ("40001", 5, errors.TransactionConflict, 5),
        ("55P03", 1, errors.DatabaseTimeout, 1),
        ("53100", 1, errors.DatabaseFull, 1),
        ("XX000", 1, errors.DatabaseFailure, 1),
    ],
)
async def test_only_conflicts_are_tried_again(
    database_url: str,
    sqlstate: str,
    times: int,
    outcome: type[errors.PersistenceError] | None,
    tries: int,
) -> None:
    orders = Orders(database_url)
    order_id = orders.add()
    with psycopg.connect(database_url, autocommit=True) as connection:
        # nextval() is never rolled back, so the sequence counts every attempt.
        connection.execute(f"""
            CREATE SEQUENCE tries;
            CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN
                IF nextval('tries') <= {times} THEN
                    RAISE EXCEPTION USING errcode = '{sqlstate}';
                END IF;
                RETURN new;
            END $$;
            CREATE TRIGGER fail BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION fail()
        """)
    async with repository(database_url) as repo:
        try:
            await repo.update_payment_info(order_id, PaymentUpdate(payment_status="paid"), ORIGIN)
            failure = None
        except errors.PersistenceError as error:
            failure = type(error)
    assert failure is outcome
    assert orders.value("SELECT last_value FROM tries") == tries
    assert orders.row(order_id)["payment_status"] == ("pending" if outcome else "paid")


async def test_a_read_only_connection_is_replaced(database_url: str, tmp_path: Path) -> None:
    """With several hosts in the URL, the next connection may reach the primary."""
    order_id = Orders(database_url).add()
    async with (
        wire.counted(database_url, tmp_path) as (url, _),
        repository(url, max_connections=1) as repo,
    ):
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET"
                " default_transaction_read_only = on', current_database()); END $$"
            )
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            with pytest.raises(errors.DatabaseUnavailable):
                await repo.update_payment_info(order_id, PaymentUpdate(payment_status="x"), ORIGIN)
            with pytest.raises(errors.DatabaseReadOnly):
                await repo.update_payment_info(order_id, PaymentUpdate(payment_status="x"), ORIGIN)
            connection.execute(
                "BEGIN; SET TRANSACTION READ WRITE; DO $$ BEGIN EXECUTE format('ALTER DATABASE %I"
                " RESET default_transaction_read_only', current_database()); END $$; COMMIT"
            )
        await repo.update_payment_info(order_id, PaymentUpdate(payment_status="x"), ORIGIN)


async def test_without_prepared_statements(database_url: str, tmp_path: Path) -> None:
    """No prepared statement stays on a connection: a pooler may assign it to another client."""
    orders = Orders(database_url)
    order_id = orders.add()
    async with (
        wire.counted(database_url, tmp_path) as (url, counts),
        databases.pool(url, max_connections=1, prepared_statements=False) as database,
    ):
        repo = OrderRepository(database)
        for number in range(3):
            await repo.update_payment_info(
                order_id, PaymentUpdate(payment_status=f"x{number}"), ORIGIN
            )
    assert (
        counts.messages[b"P"[0]] == 6
    )  # each statement is parsed twice: for Describe and for Execute
    assert orders.row(order_id)["payment_status"] == "x2"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://nobody@127.0.0.1:1/nothing",
        "postgresql://nobody@/nothing?host=/nonexistent",
    ],
)
async def test_an_unreachable_server_raises_database_unavailable(url: str) -> None:
    with pytest.raises(errors.DatabaseUnavailable):
        async with repository(url):
            pass


async def test_lost_connections_are_replaced(database_url: str) -> None:
    order_id = Orders(database_url).add()
    async with repository(database_url) as repo:
        await repo.update_payment_info(order_id, PaymentUpdate(payment_status="before"), ORIGIN)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        for attempt in range(3):
            try:
                order = (
                    await repo.update_payment_info(
                        order_id, PaymentUpdate(payment_status="after"), ORIGIN
                    )
                ).order
                break
            except errors.DatabaseUnavailable:
                assert attempt < 2
    assert order.payment_status == "after"


async def test_a_record_has_every_column(database_url: str) -> None:
    order_id = Orders(database_url).add()
    assert set(Order._fields) == Orders(database_url).row(order_id).keys()
