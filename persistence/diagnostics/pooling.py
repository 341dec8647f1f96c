"""Connection poolers, and whether prepared statements are kept behind them.

In transaction mode, a pooler gives each transaction any connection to the server. A statement that
was prepared on another one is unknown there, or one with its name is of another client. PgBouncer
1.21 and later can prepare it again: max_prepared_statements.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import asyncpg

from persistence.diagnostics.connection import Connection, connected
from persistence.diagnostics.fault import Advice, Fault

_HOLDERS: Final = 3
"""Connections to the server that are held, so that a pooler has to take another one."""

_SECONDS: Final = 3.0
"""For all that ``are_kept`` does."""

LOST_ERRORS: Final = (
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.InvalidSQLStatementNameError,
)
"""What PostgreSQL reports behind a pooler that loses prepared statements."""


async def is_pooled(connection: Connection) -> bool:
    """Return whether a pooler is between the connection and PostgreSQL.

    Its key for cancels is not that of the server process, which the session asks for its id.
    """
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    return bool(pid != connection.get_server_pid())


async def check_prepared_statements(connection: Connection, url: str, *, are_used: bool) -> str:
    """Raise Fault when ``connection``, to ``url``, is to a pooler that loses prepared statements.

    Advice, when they could be used and are not; ``are_used`` is whether the service does.
    """
    if not await is_pooled(connection):
        if not are_used:
            raise Advice(
                "they are off, and LISTINGS_DATABASE_URL leads to PostgreSQL itself",
                "Remove LISTINGS_PREPARED_STATEMENTS=off: each statement then takes one round trip "
                "in place of two",
            )
        return "they are used, and each connection leads to PostgreSQL itself"
    if not are_used:
        return "they are off, as a connection pooler may demand"
    kept = await are_kept(url)
    if kept is None:
        return (
            "they are used; whether the connection pooler keeps them was not found out, since it "
            "gave no further connections"
        )
    if not kept:
        raise Fault(
            "a connection pooler loses prepared statements, and LISTINGS_PREPARED_STATEMENTS is "
            "on: most calls would fail",
            "Set LISTINGS_PREPARED_STATEMENTS=off, and LISTINGS_DIRECT_DATABASE_URL to a URL of "
            "PostgreSQL itself; or use a pooler that keeps them (PgBouncer 1.21 or later with "
            "max_prepared_statements, or pool_mode = session)",
        )
    return "they are used, and the connection pooler keeps them"


async def are_kept(url: str) -> bool | None:
    """Return whether the pooler at ``url``, a libpq URL, keeps prepared statements for a client.

    None when it is not found out: the pooler gives no further connections, or not in time.

    A statement is prepared, and executed while others hold connections to the server. So it has to
    be executed on another connection, unless the pooler keeps one for the client; also when the
    pooler is idle, and would take the same one again. A second client prepares one with the same
    name, for a pooler that has a single connection.
    """
    try:
        async with asyncio.timeout(_SECONDS), AsyncExitStack() as stack:
            return await _are_kept(url, stack)
    except (OSError, Fault, asyncpg.PostgresError, asyncpg.InterfaceError):
        return None


async def _are_kept(url: str, stack: AsyncExitStack) -> bool:
    """Return whether they are. The connections are closed by ``stack``."""
    name = f"listings_{os.getpid()}"
    one = await stack.enter_async_context(connected(url, timeout=_SECONDS))
    other = await stack.enter_async_context(connected(url, timeout=_SECONDS))
    try:
        statement = await one.prepare("SELECT pg_backend_pid()", name=name)
        prepared_on = await statement.fetchval()
        same = await other.prepare("SELECT pg_backend_pid()", name=name)
        await same.fetchval()  # after asyncpg's prepare() alone, PgBouncer drops its connection
        for _ in range(_HOLDERS):
            await stack.enter_async_context(_held(url))
            if await statement.fetchval() != prepared_on:
                break
    except LOST_ERRORS:
        # As far as it is on a connection that is idle now.
        with suppress(asyncpg.PostgresError):
            await other.execute(f"DEALLOCATE {name}")
        return False
    return True


@asynccontextmanager
async def _held(url: str) -> AsyncIterator[None]:
    """Hold a connection of the pooler to the server."""
    async with connected(url, timeout=_SECONDS) as holder:
        await holder.execute("BEGIN")
        yield
        await holder.execute("ROLLBACK")  # of a client that leaves without, PgBouncer drops it
