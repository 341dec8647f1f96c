"""Canaries: behaviour of databases and asyncpg that ``persistence`` works around.

Each test shows one fault of the plain library. If it fails after an update of the library, the
workaround may be removed: see the table in ``docs/development.md``.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import databases
import psutil
import psycopg
import pytest
from sqlalchemy.sql.compiler import SQLCompiler

from persistence.dsn import asyncpg_dsn
from tests.support import databases as test_databases
from tests.support import wire
from tests.support.orders import Orders
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.anyio

_UNTIL_PEERS_HAVE_ENDED = 0.05  # seconds after connections are closed


@asynccontextmanager
async def pool(url: str, **options: Any) -> AsyncIterator[asyncpg.Pool]:
    """A plain pool of asyncpg, with one connection."""
    options = {"min_size": 0, "init_size": 1, "max_size": 1, "timeout": 5} | options
    pool = await asyncpg.create_pool(dsn=asyncpg_dsn(url), **options)
    try:
        yield pool
    finally:
        async with asyncio.timeout(5):
            await pool.close()
        await asyncio.sleep(_UNTIL_PEERS_HAVE_ENDED)


@asynccontextmanager
async def database(url: str) -> AsyncIterator[databases.Database]:
    """A plain database of databases, with one connection."""
    opened = databases.Database(
        "postgresql:///", dsn=asyncpg_dsn(url), database=None, min_size=1, max_size=1
    )
    await opened.connect()
    try:
        yield opened
    finally:
        opened._backend._pool.terminate()
        await asyncio.sleep(_UNTIL_PEERS_HAVE_ENDED)


async def test_databases_ignores_options_of_a_url(database_url: str) -> None:
    """database.py: the URL goes to asyncpg as its dsn."""
    url = f"{database_url}&target_session_attrs=standby"
    with pytest.raises(asyncpg.TargetServerAttributeNotMatched):
        await asyncpg.connect(dsn=asyncpg_dsn(url))
    async with databases.Database(url, min_size=1, max_size=1) as connected:
        assert await connected.fetch_val("SELECT pg_is_in_recovery()") is False


def test_databases_takes_no_url_of_several_hosts() -> None:
    """database.py: the URL goes to asyncpg as its dsn."""
    url = databases.DatabaseURL("postgresql://one:5432,two:5433/listings")
    with pytest.raises(ValueError, match="Port"):
        _ = url.port


async def test_a_record_of_databases_unpacks_to_its_columns_names(database_url: str) -> None:
    """database.py: fetch_all returns the records of asyncpg."""
    async with database(database_url) as plain:
        record = await plain.fetch_one("SELECT 1 AS first, 2 AS second")
        assert record is not None
        assert list(record) == ["first", "second"]
        assert list(record._mapping.values()) == [1, 2]


async def test_databases_gives_a_task_the_connection_that_it_has(database_url: str) -> None:
    """database.py: a statement has a connection of its own."""
    async with database(database_url) as plain, plain.connection() as taken:
        assert plain.connection() is taken


async def test_databases_compiles_a_query_each_time(
    monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """database.py: statements that run once an RPC run on the raw connection."""
    compiled = []
    compiler = SQLCompiler.__init__

    def count(*args: Any, **options: Any) -> None:
        compiled.append(args)
        compiler(*args, **options)

    monkeypatch.setattr(SQLCompiler, "__init__", count)
    async with database(database_url) as plain:
        for number in range(3):
            assert await plain.fetch_val("SELECT CAST(:n AS int)", {"n": number}) == number
    assert len(compiled) == 3


async def test_a_transaction_of_databases_keeps_its_connection_when_cancelled(
    database_url: str, tmp_path: Path
) -> None:
    """database.py: no transactions, and therefore no iterate, of databases."""
    async with wire.counted(database_url, tmp_path) as (url, counts), database(url) as plain:
        assert await plain.fetch_val("SELECT 1") == 1

        async def read() -> None:
            async for _ in plain.iterate("SELECT 1"):
                pass

        counts.answering.clear()
        before = counts.round_trips
        reading = asyncio.create_task(read())
        await eventually_async(lambda: counts.round_trips > before)  # BEGIN is on its way
        reading.cancel()
        counts.answering.set()
        await asyncio.gather(reading, return_exceptions=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await plain.fetch_val("SELECT 1")


async def test_asyncpg_resets_a_connection_in_a_round_trip_of_its_own(
    database_url: str, tmp_path: Path
) -> None:
    """database.py: _no_reset."""
    async with wire.counted(database_url, tmp_path) as (url, counts), pool(url) as plain:
        await plain.fetchval("SELECT 1")
        before = counts.round_trips
        for _ in range(10):
            await plain.fetchval("SELECT 1")
        assert counts.round_trips - before == 20


async def test_asyncpg_keeps_a_cancelled_task_until_postgresql_answers(
    database_url: str, tmp_path: Path
) -> None:
    """database.py: a task of its own releases the connection of a cancelled statement."""
    async with wire.counted(database_url, tmp_path) as (url, counts), pool(url) as plain:
        await plain.fetchval("SELECT 1")
        counts.answering.clear()
        before = counts.messages.total()
        cancelled = asyncio.create_task(plain.fetchval("SELECT 2"))
        await eventually_async(lambda: counts.messages.total() > before)
        cancelled.cancel()
        await asyncio.wait([cancelled], timeout=0.5)
        assert not cancelled.done()
        counts.answering.set()
        with suppress(asyncio.CancelledError):
            await cancelled


async def test_asyncpg_sends_a_cancel_once(database_url: str, tmp_path: Path) -> None:
    """database.py: _end_cancelled sends it again, as PostgreSQL has ignored the first one."""
    async with wire.counted(database_url, tmp_path) as (url, counts), pool(url) as plain:
        backend = psutil.Process(await plain.fetchval("SELECT pg_backend_pid()"))
        await plain.fetchval("SELECT pg_sleep($1)", 0)
        backend.suspend()
        try:
            sent = counts.messages.total()
            cancelled = asyncio.create_task(plain.fetchval("SELECT pg_sleep($1)", 1))
            await eventually_async(lambda: counts.messages.total() > sent)
            cancelled.cancel()
            await eventually_async(lambda: counts.cancels > 0)
        finally:
            backend.resume()
        await asyncio.wait([cancelled], timeout=0.5)
        assert not cancelled.done()
        assert counts.cancels == 1
        with suppress(asyncio.CancelledError):
            await cancelled


async def test_asyncpg_keeps_a_task_cancelled_in_init_until_postgresql_answers(
    database_url: str, tmp_path: Path
) -> None:
    """database.py: _prepare_session terminates the connection."""
    is_new = asyncio.Event()

    async def init(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        counts.answering.clear()
        is_new.set()
        await connection.execute("SELECT 1")

    # The pool opens its connection with the first statement.
    options = {"min_size": 0, "init_size": 0, "init": init}
    async with wire.counted(database_url, tmp_path) as (url, counts), pool(url, **options) as plain:
        cancelled = asyncio.create_task(plain.fetchval("SELECT 2"))
        await is_new.wait()
        cancelled.cancel()
        await asyncio.wait([cancelled], timeout=0.5)
        assert not cancelled.done()
        counts.answering.set()
        with suppress(asyncio.CancelledError):
            await cancelled


async def test_asyncpg_keeps_a_connection_to_a_server_that_takes_no_writes(
    database_url: str,
) -> None:
    """database.py: such a connection is terminated."""
    async with pool(database_url) as plain:
        backend = await plain.fetchval("SELECT pg_backend_pid()")
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await plain.execute("BEGIN READ ONLY; CREATE TABLE written ()")
        assert await plain.fetchval("SELECT pg_backend_pid()") == backend


async def test_asyncpg_fails_a_call_whose_connection_is_refused_while_it_has_another(
    database_url: str,
) -> None:
    """pool_slots.py: the call waits for the other one."""
    server, name = test_databases.server_and_name(database_url)
    async with pool(database_url, max_size=2) as plain, plain.acquire():
        with psycopg.connect(server, autocommit=True) as owner:
            allow = f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS'
            owner.execute(f"{allow} false".encode())
            try:
                with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
                    await plain.fetchval("SELECT 1")
            finally:
                owner.execute(f"{allow} true".encode())


@pytest.mark.filterwarnings("ignore:.*is being released to the pool but has 1 active log listener")
async def test_asyncpg_has_warnings_for_listeners_that_a_pool_drops(database_url: str) -> None:
    """connection.py: a warning of PostgreSQL makes the statement under way fail."""
    warnings: list[object] = []

    async def init(connection: asyncpg.Connection) -> None:
        connection.add_log_listener(lambda _connection, message: warnings.append(message))

    async with pool(database_url, init=init) as plain:
        for _ in range(2):
            await plain.execute("DO $$ BEGIN RAISE WARNING 'not replicated'; END $$")
            await asyncio.sleep(0)
        assert len(warnings) < 2


async def test_asyncpg_restores_a_minimum_with_a_traceback_for_each_failure(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """database.py: min_size is 0."""
    server, name = test_databases.server_and_name(database_url)
    async with pool(database_url, min_size=1):
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                (name,),
            )

        await eventually_async(lambda: any(each.exc_info for each in caplog.records))


async def test_asyncpg_leaves_a_transaction_open_when_cancelled_after_prepare(
    database_url: str,
) -> None:
    """It prepares with Flush, not Sync; a cancel in the iteration that reads the answer is late."""
    loop, orders = asyncio.get_running_loop(), Orders(database_url)
    connection = await asyncpg.connect(dsn=asyncpg_dsn(database_url))
    try:
        states = []
        for iterations in range(12):  # until Parse is sent
            statement = asyncio.ensure_future(connection.fetchrow(f"SELECT {iterations}"))
            for _ in range(iterations):
                await asyncio.sleep(0)
            loop.call_later(0.005, statement.cancel)
            time.sleep(0.05)  # noqa: ASYNC251 - so that both are due at once
            await asyncio.gather(statement, return_exceptions=True)
            await asyncio.sleep(0.02)
            pid = connection.get_server_pid()
            states.append(orders.value(f"SELECT state FROM pg_stat_activity WHERE pid = {pid}"))
            await connection.execute("SELECT")
        assert "active" in states
    finally:
        connection.terminate()


async def test_asyncpg_leaves_a_transaction_open_when_there_is_nothing_to_execute(
    database_url: str,
) -> None:
    """``fetchmany`` without arguments prepares the statement, and sends no Sync."""
    orders = Orders(database_url)
    connection = await asyncpg.connect(dsn=asyncpg_dsn(database_url))
    try:
        assert await connection.fetchmany("SELECT $1::int", []) == []
        pid = connection.get_server_pid()
        assert orders.value(f"SELECT state FROM pg_stat_activity WHERE pid = {pid}") == "active"
    finally:
        connection.terminate()


async def test_asyncpg_cannot_read_times_that_a_datetime_cannot_hold(database_url: str) -> None:
    """timestamps.py: a codec of its own."""
    async with pool(database_url) as plain:
        for time in ("0001-12-31 BC", "10000-01-01", "294276-12-31"):
            with pytest.raises(OverflowError):
                await plain.fetchval(f"SELECT timestamptz '{time}'")
        for time, nearest in (("infinity", datetime.max), ("-infinity", datetime.min)):
            assert await plain.fetchval(f"SELECT timestamptz '{time}'") == nearest
