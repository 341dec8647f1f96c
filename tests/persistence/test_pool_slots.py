"""Connections that PostgreSQL refuses, while the pool has others and while it has none."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest

from persistence import errors
from persistence.database import Database
from tests.support import databases, wire
from tests.support.databases import server_and_name
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.anyio

SIZE: Final = 8
SOON: Final = 3.0  # seconds: long before the statement timeout
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event = 'PgSleep'"

REFUSALS = {"no slots": "CONNECTION LIMIT {}", "no access": "ALLOW_CONNECTIONS false"}


class Server:
    """The server of a database, by a connection to another one, which counts against no limit."""

    def __init__(self, owner: psycopg.Connection[tuple[object]], name: str) -> None:
        self._owner = owner
        self._name = name

    def alter(self, option: str) -> None:
        self._owner.execute(f'ALTER DATABASE "{self._name}" {option}'.encode())

    def terminate(self) -> None:
        self._owner.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            (self._name,),
        )

    def sleeping(self) -> object:
        row = self._owner.execute(SLEEPING, (self._name,)).fetchone()
        return row and row[0]


@contextmanager
def server_of(url: str) -> Iterator[Server]:
    server, name = server_and_name(url)
    with psycopg.connect(server, autocommit=True) as owner:
        made = Server(owner, name)
        try:
            yield made
        finally:
            made.alter("CONNECTION LIMIT -1")
            made.alter("ALLOW_CONNECTIONS true")


def pool(url: str) -> Database:
    return databases.pool(url, max_connections=SIZE, statement_timeout=3 * SOON, eager=False)


async def sleep(database: Database, seconds: float) -> None:
    await database.fetchrow("SELECT pg_sleep($1)", seconds)


async def test_calls_share_the_connections_that_there_are(
    database_url: str, tmp_path: Path
) -> None:
    allowed = 3
    with server_of(database_url) as server:
        server.alter(f"CONNECTION LIMIT {allowed}")
        async with wire.counted(database_url, tmp_path) as (url, counts), pool(url) as database:
            began = time.monotonic()
            for _ in range(3):
                await asyncio.gather(*(sleep(database, 0.02) for _ in range(6 * SIZE)))
            seconds = time.monotonic() - began
            assert counts.connections <= SIZE + (SIZE - allowed) * seconds

            server.alter("CONNECTION LIMIT -1")
            calls = asyncio.gather(*(sleep(database, 1.5) for _ in range(SIZE)))
            await eventually_async(lambda: server.sleeping() == SIZE, seconds=SOON)
            await calls


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refused_call_has_the_connection_that_another_gives_back(
    database_url: str, refusal: str
) -> None:
    with server_of(database_url) as server:
        async with pool(database_url) as database:
            first = asyncio.create_task(sleep(database, 0.5))
            await eventually_async(lambda: server.sleeping() == 1)
            server.alter(REFUSALS[refusal].format(1))
            await database.fetchrow("SELECT 1")
            assert first.done()
            await first


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_calls_fail_at_once_when_there_is_no_connection(
    database_url: str, tmp_path: Path, refusal: str
) -> None:
    with server_of(database_url) as server:
        async with wire.counted(database_url, tmp_path) as (url, counts), pool(url) as database:
            server.alter(REFUSALS[refusal].format(0))
            for turn in (1, 2):
                async with asyncio.timeout(SOON):
                    calls = [database.fetchrow("SELECT 1") for _ in range(4 * SIZE)]
                    outcomes = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(each) for each in outcomes} == {errors.DatabaseUnreachable}
                assert counts.connections <= turn * SIZE
            server.alter("CONNECTION LIMIT -1")
            server.alter("ALLOW_CONNECTIONS true")
            await asyncio.gather(*(database.fetchrow("SELECT 1") for _ in range(4 * SIZE)))


async def test_a_waiting_call_fails_when_the_last_connection_is_lost(database_url: str) -> None:
    with server_of(database_url) as server:
        async with pool(database_url) as database:
            first = asyncio.create_task(sleep(database, 60))
            await eventually_async(lambda: server.sleeping() == 1)
            server.alter("ALLOW_CONNECTIONS false")
            second = asyncio.create_task(sleep(database, 60))
            await eventually_async(lambda: database.waiting == 1)
            await asyncio.to_thread(server.terminate)
            async with asyncio.timeout(SOON):
                outcomes = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(each) for each in outcomes] == [
        errors.DatabaseUnavailable,
        errors.DatabaseUnreachable,
    ]


async def test_a_cancelled_call_leaves_its_place(database_url: str) -> None:
    with server_of(database_url) as server:
        async with pool(database_url) as database:
            first = asyncio.create_task(sleep(database, 0.3))
            await eventually_async(lambda: server.sleeping() == 1)
            server.alter("CONNECTION LIMIT 1")
            waiting = [asyncio.create_task(sleep(database, 0)) for _ in range(3)]
            await eventually_async(lambda: database.waiting == 3)
            for each in waiting[:2]:
                each.cancel()
            await asyncio.gather(first, waiting[2])
            assert (database.in_use, database.waiting) == (0, 0)
