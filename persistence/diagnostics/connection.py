"""Connections for the checks."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Protocol, TypeAlias

import asyncpg

from persistence.diagnostics.fault import Fault
from persistence.dsn import asyncpg_dsn, parameters

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Fetches(Protocol):
    """A connection of asyncpg, or the pool."""

    async def fetch(self, sql: str, /, *args: Any) -> Sequence[Sequence[Any]]:
        """Run a statement and return its rows."""
        ...


# Of what no user has made, the oid is lower: FirstNormalObjectId in PostgreSQL's transam.h.
_LOCKED: Final = """
    SELECT relation::regclass::text, pid FROM pg_locks
    WHERE mode = 'AccessExclusiveLock' AND granted AND locktype = 'relation'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND relation >= 16384 AND pid <> pg_backend_pid()
    ORDER BY 1
"""

_LOGIN_ERRORS: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidPasswordError,
)


@asynccontextmanager
async def connected(url: str, *, timeout: float) -> AsyncIterator[Connection]:  # noqa: ASYNC109
    """Yield a connection for the checks to the database at ``url``, a libpq URL.

    ``timeout`` is in seconds, to connect and for each statement. Raises Fault, or
    InvalidDatabaseURL. What the driver raises for a statement within is raised as Fault.
    """
    dsn = asyncpg_dsn(url)
    try:
        connection = await asyncpg.connect(
            dsn=dsn, timeout=timeout, command_timeout=timeout, statement_cache_size=0
        )
    except Exception as error:
        raise _unreachable(error, url, timeout) from error
    try:
        yield connection
    except asyncio.CancelledError:
        connection.terminate()
        raise
    except TimeoutError as error:
        raise await _late(connection, timeout) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise Fault(
            f"a check of the database failed: {error or type(error).__name__}",
            "Look into PostgreSQL's log",
        ) from error
    finally:
        with suppress(Exception):  # not terminated, after which a pooler would drop its own, too
            await connection.close(timeout=timeout)


async def row(connection: Connection, sql: str, *args: object) -> "asyncpg.Record":
    """Return the row of a statement that returns one."""
    found = await connection.fetchrow(sql, *args)
    assert found is not None  # noqa: S101 - these statements return one row
    return found


async def _late(connection: Connection, timeout: float) -> Fault:  # noqa: ASYNC109
    """Return what to raise when a statement on ``connection`` had no answer within ``timeout``."""
    problem = f"the database does not answer within {timeout:g} s"
    with suppress(Exception):
        for table, session in await connection.fetch(_LOCKED):
            return Fault(
                f"{problem}: session {session} has locked {table}",
                f"Wait until its transaction has ended, or end it: SELECT pg_terminate_backend("
                f"{session});",
            )
    return Fault(problem, "See whether it is overloaded, or hangs")


def _unreachable(error: Exception, url: str, timeout: float) -> Fault:
    """Return what to raise when connecting to ``url`` has failed with ``error``."""
    given = parameters(url)
    where = ", ".join(
        f"{name} {given[name]}" for name in ("host", "port", "dbname") if name in given
    )
    correct = "correct LISTINGS_DATABASE_URL"
    match error:
        case TimeoutError():
            problem = f"does not answer within {timeout:g} s"
            remedy = f"See whether it hangs or a firewall drops packets, or {correct}"
        case socket.gaierror():
            problem, remedy = "its host's name is not known", f"See to the DNS, or {correct}"
        case asyncpg.TooManyConnectionsError():
            problem = "has no connection left"
            remedy = (
                "Raise max_connections, or lower LISTINGS_POOL_SIZE of the services that use it"
            )
        case asyncpg.PostgresError() if "max_client_conn" in str(error):
            problem = f"PgBouncer has no connection left: {error}"
            remedy = "Raise that, or lower LISTINGS_POOL_SIZE of the services that use it"
        case asyncpg.CannotConnectNowError():
            problem, remedy = "is starting up or shutting down", "Wait, and look into its log"
        case asyncpg.InvalidCatalogNameError():
            problem, remedy = str(error), f"Create it with createdb, or {correct}"
        case asyncpg.TargetServerAttributeNotMatched():
            problem = f"no host has target_session_attrs={given.get('target_session_attrs')}"
            remedy = f"Promote a standby or start the primary, or {correct}"
        case _ if isinstance(error, _LOGIN_ERRORS):
            problem = str(error)
            remedy = f"Let the user in (pg_hba.conf), set its password, or {correct}"
        case _:
            problem = f"cannot be reached: {error}"
            remedy = f"Start PostgreSQL, let it listen there, or {correct}"
    return Fault(f"{problem} ({where})" if where else problem, remedy)
