"""The two ways to run a statement: through databases, and on the raw asyncpg connection."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import psutil
import psycopg
import pytest

from persistence import errors
from persistence.database import Database
from tests.support import databases, wire
from tests.support.orders import Orders
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.anyio

Run: TypeAlias = Callable[[Database, str], Awaitable[object]]

WAYS: dict[str, Run] = {
    "fetch_all": Database.fetch_all,
    "fetch_one": Database.fetch_one,
    "fetch": Database.fetch,
    "fetchrow": Database.fetchrow,
    "fetchmany": lambda database, sql: database.fetchmany(sql, [()]),
}
SLEEPING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event = 'PgSleep' AND datname = current_database()"
)

OURS = (
    "datname = current_database() AND backend_type = 'client backend' AND query ~ 'UPDATE'"
    " AND pid <> pg_backend_pid()"
)

OPEN_TRANSACTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND state <> 'idle'"
)


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest) -> Run:
    return WAYS[request.param]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("bigint", 2**40),
        ("bigint[]", [3, 2**62]),
        ("text", "50% of :this and $1 \\ 'that' \N{SNOWMAN}"),
        ("text[]", ["a", ":b"]),
        ("timestamptz", datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)),
        ("xid8", 2**40),
        ("pg_snapshot", (5, 9, (6, 7))),
        ("bigint", None),
    ],
)
async def test_named_parameters_are_encoded_like_numbered_ones(
    database_url: str, type_: str, value: object
) -> None:
    async with databases.pool(database_url) as database:
        query = f"SELECT CAST(:value AS {type_}) AS first, CAST(:value AS {type_}) AS second"
        (named,) = await database.fetch_all(query, {"value": value})
        numbered = await database.fetchrow(f"SELECT $1::{type_}, $1::{type_}", value)
        assert numbered is not None
        assert dict(named) == {"first": value, "second": value}
        assert tuple(numbered) == (value, value)
        assert await database.fetch_one(query, {"value": value}) == named


async def test_rows_and_none(database_url: str) -> None:
    async with databases.pool(database_url) as database:
        query = "SELECT n FROM generate_series(1, :last) n WHERE n <> :left_out"
        rows = await database.fetch_all(query, {"last": 4, "left_out": 2})
        assert [row["n"] for row in rows] == [1, 3, 4]
        assert await database.fetch_all("SELECT 1 AS one WHERE false") == []
        assert await database.fetch_one("SELECT 1 AS one WHERE false") is None


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT 1/0", errors.InvalidValue),
        ("SELECT FROM nowhere", errors.DatabaseFailure),
        ("SELECT pg_terminate_backend(pg_backend_pid())", errors.DatabaseUnavailable),
    ],
)
async def test_driver_errors_are_translated_to_those_of_persistence(
    database_url: str, run: Run, sql: str, error: type[errors.PersistenceError]
) -> None:
    async with databases.pool(database_url) as database:
        with pytest.raises((error, errors.RolledBack)):
            await run(database, sql)
        assert await database.fetchrow("SELECT 1")


async def test_a_statement_is_cancelled_after_statement_timeout(
    database_url: str, run: Run
) -> None:
    async with databases.pool(database_url, statement_timeout=0.3) as database:
        with pytest.raises(errors.DatabaseTimeout):
            await run(database, "SELECT pg_sleep(60)")
        await eventually_async(lambda: Orders(database_url).value(SLEEPING) == 0)


async def test_a_task_goes_on_while_its_cancelled_statement_ends(
    database_url: str, tmp_path: Path, run: Run
) -> None:
    async with (
        wire.counted(database_url, tmp_path) as (url, counts),
        databases.pool(url, max_connections=2, statement_timeout=0.5) as database,
    ):
        counts.answering.clear()
        with pytest.raises(errors.DatabaseTimeout):
            await run(database, "SELECT 1")
        counts.answering.set()
        for _ in range(10):
            await run(database, "SELECT 1")


async def test_cancelled_statements_end_and_leak_no_connection(database_url: str, run: Run) -> None:
    """PostgreSQL ignores a cancel that arrives before the statement, which then ends by itself."""
    async with databases.pool(database_url, max_connections=2) as database:
        for round_ in range(40):
            tasks = [asyncio.ensure_future(run(database, "SELECT pg_sleep(1)")) for _ in range(3)]
            for _ in range(round_ % 12):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(each) for each in outcomes} == {asyncio.CancelledError}
        async with asyncio.timeout(10):
            await asyncio.gather(*(run(database, "SELECT 1") for _ in range(4)))
        await eventually_async(lambda: Orders(database_url).value(SLEEPING) == 0)
        await eventually_async(lambda: (database.in_use, database.waiting) == (0, 0))


async def test_a_cancel_that_postgresql_ignores_is_sent_again(
    database_url: str, tmp_path: Path, run: Run
) -> None:
    """It ignores one that arrives before the statement: here, while its process is suspended."""
    orders = Orders(database_url)
    order_id = orders.add()
    update = (
        "UPDATE orders SET payment_transaction_id = concat(payment_transaction_id, 'x')"
        f" WHERE id = {order_id} RETURNING id"
    )
    async with (
        wire.counted(database_url, tmp_path) as (url, counts),
        databases.pool(url, max_connections=1, statement_timeout=10) as database,
    ):
        await run(database, update)  # from here on it is prepared, and executed at once
        before = orders.row(order_id)
        process = psutil.Process(orders.value(f"SELECT pid FROM pg_stat_activity WHERE {OURS}"))
        with orders.locked(order_id):
            process.suspend()
            try:
                sent = counts.messages.total()
                statement = asyncio.ensure_future(run(database, update))
                await eventually_async(lambda: counts.messages.total() > sent)
                statement.cancel()
                await eventually_async(lambda: counts.cancels > 0)
            finally:
                process.resume()
            await eventually_async(lambda: database.in_use == 0, seconds=5)
        for _ in range(10):
            await run(database, "SELECT 1")
    assert orders.row(order_id) == before


async def test_statements_are_repeated_after_a_conflict(database_url: str, run: Run) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("""
            CREATE SEQUENCE tries;
            CREATE FUNCTION conflict() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN
                IF nextval('tries') < 3 THEN RAISE EXCEPTION USING errcode = '40001'; END IF;
                RETURN 1;
            END $$;
        """)
    async with databases.pool(database_url) as database:
        if run is WAYS["fetchmany"]:
            with pytest.raises(errors.RolledBack):
                await run(database, "SELECT conflict()")
        else:
            await run(database, "SELECT conflict()")
    tries = Orders(database_url).value("SELECT last_value FROM tries")
    assert tries == (1 if run is WAYS["fetchmany"] else 3)


async def test_a_statement_cancelled_as_it_is_prepared_leaves_no_transaction(
    run: Run, database_url: str
) -> None:
    """The cancel comes in the iteration of the event loop that reads the answer to Parse."""
    loop, orders = asyncio.get_running_loop(), Orders(database_url)
    async with databases.pool(database_url, max_connections=1) as database:
        for iterations in range(12):  # until Parse is sent: some, which depend on the way
            statement = asyncio.ensure_future(run(database, f"SELECT {iterations}"))
            for _ in range(iterations):
                await asyncio.sleep(0)
            cancel = loop.call_later(0.005, statement.cancel)
            time.sleep(0.02)  # noqa: ASYNC251 - so that both are due at once
            await asyncio.gather(statement, return_exceptions=True)
            cancel.cancel()
            await eventually_async(lambda: orders.value(OPEN_TRANSACTIONS) == 0, seconds=5)


async def test_a_batch_without_statements_leaves_no_transaction(database_url: str) -> None:
    """As one whose callers have all cancelled by the time that it has a connection."""
    orders = Orders(database_url)
    async with databases.pool(database_url, max_connections=1) as database:
        assert await database.fetchmany("SELECT $1::int", []) == []
        await eventually_async(lambda: orders.value(OPEN_TRANSACTIONS) == 0, seconds=5)


@pytest.mark.parametrize("is_batch", [False, True])
async def test_a_value_that_cannot_be_encoded_leaves_no_transaction(
    database_url: str, is_batch: bool
) -> None:
    """asyncpg rejects it after the statement was prepared."""
    orders = Orders(database_url)
    async with databases.pool(database_url, max_connections=1) as database:
        with pytest.raises((errors.InvalidValue, errors.RolledBack)):
            if is_batch:
                await database.fetchmany("SELECT $1::text", [("\udcc3",)])
            else:
                await database.fetchrow("SELECT $1::text", "\udcc3")
        await eventually_async(lambda: orders.value(OPEN_TRANSACTIONS) == 0, seconds=5)
