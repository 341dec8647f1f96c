"""The server: its version, whether it takes updates, and whether two URLs lead to it."""

from typing import Final

from persistence.diagnostics.connection import Connection, connected, row
from persistence.diagnostics.fault import Fault

_MIN_VERSION: Final = 14
"""The first PostgreSQL with CREATE OR REPLACE TRIGGER, by which a migration keeps the history."""


async def check_server(connection: Connection) -> str:
    """Return the server's version, the database and the user. Raises Fault when it is too old."""
    version, database, user = await row(
        connection, "SELECT current_setting('server_version'), current_database(), current_user"
    )
    if connection.get_server_version().major < _MIN_VERSION:
        raise Fault(
            f"PostgreSQL {version} is too old",
            f"Use PostgreSQL {_MIN_VERSION} or later, better one that is still maintained",
        )
    return f"PostgreSQL {version}, database {database}, user {user}"


async def check_writable(connection: Connection) -> str:
    """Raise Fault when the server or the user's sessions are read-only."""
    in_recovery, read_only = await row(
        connection,
        "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean",
    )
    if in_recovery:
        raise Fault(
            "the server is a standby (in recovery), which takes no updates",
            "Name the primary in LISTINGS_DATABASE_URL, or several hosts with "
            "target_session_attrs=read-write",
        )
    if read_only:
        raise Fault(
            "default_transaction_read_only is on, so that nothing can be written",
            "Find the reason (a full disk, a move), and turn it off for the server, the database "
            "or the user, where it was turned on",
        )
    return "takes updates"


async def check_same(
    connection: Connection,
    url: str,
    variable: str,
    *,
    timeout: float,  # noqa: ASYNC109
) -> str:
    """Raise Fault when ``url``, the value of ``variable``, leads to another database."""
    identity = (
        "SELECT oid, pg_postmaster_start_time() FROM pg_database WHERE datname = current_database()"
    )
    async with connected(url, timeout=timeout) as other:
        if await other.fetchrow(identity) != await connection.fetchrow(identity):
            raise Fault(
                "it leads to another database",
                f"Let {variable} name the same database as LISTINGS_DATABASE_URL, and its server "
                "behind a pooler",
            )
    return "it leads to the same database"
