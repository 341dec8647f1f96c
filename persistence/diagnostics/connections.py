"""Limits of connections: of the server, the user and the database."""

from typing import Final

from persistence.diagnostics.connection import Connection
from persistence.diagnostics.fault import Fault
from persistence.diagnostics.pooling import is_pooled

# What else has a session counts at each limit. Sessions of this user on this database are those of
# the service, while it runs. A limit of a role is that of the user who logs in: PostgreSQL does not
# look at the roles that it is a member of. No limit of a role or database is for superusers.
# Without pg_read_all_stats, backend_type is null in sessions of other users.
_LIMITS: Final = """
    WITH me AS (
        SELECT pg_roles.oid AS role, pg_database.oid AS database, rolsuper, rolconnlimit,
            datconnlimit
        FROM pg_roles, pg_database
        WHERE rolname = session_user AND datname = current_database()
    ), session AS (
        SELECT usesysid = role AS of_role, datid = database AS of_database
        FROM pg_stat_activity, me
        WHERE usesysid IS NOT NULL AND datid IS NOT NULL
        AND coalesce(backend_type, 'client backend') = 'client backend'
        AND pid NOT IN (SELECT pid FROM pg_stat_replication)
    )
    SELECT
        'the server (max_connections, without those reserved for others)',
        current_setting('max_connections')::int - reserved,
        (SELECT count(*) FROM session WHERE NOT (of_role AND of_database)),
        'max_connections'
    FROM (
        SELECT CASE WHEN rolsuper THEN 0 ELSE
            current_setting('superuser_reserved_connections')::int
            + CASE WHEN coalesce(
                pg_has_role(role, to_regrole('pg_use_reserved_connections')::oid, 'USAGE'), false
            ) THEN 0 ELSE coalesce(current_setting('reserved_connections', true)::int, 0) END
        END AS reserved FROM me
    ) each
    UNION ALL
    SELECT format('the limit of user %I', session_user), rolconnlimit,
        (SELECT count(*) FROM session WHERE of_role AND NOT of_database),
        format('that of the user (ALTER ROLE %I CONNECTION LIMIT …)', session_user)
    FROM me WHERE rolconnlimit >= 0 AND NOT rolsuper
    UNION ALL
    SELECT format('the limit of database %I', current_database()), datconnlimit,
        (SELECT count(*) FROM session WHERE of_database AND NOT of_role),
        format('that of the database (ALTER DATABASE %I CONNECTION LIMIT …)', current_database())
    FROM me WHERE datconnlimit >= 0 AND NOT rolsuper
"""


async def check_connections(connection: Connection, needed: int, explained: str) -> str:
    """Raise Fault when fewer connections than ``needed`` are left for the service.

    ``explained`` says in messages how many connections of what the service may open.
    """
    if await is_pooled(connection):
        return (
            f"{needed} at most ({explained}), to a connection pooler, whose own limits count "
            "(those of PgBouncer: max_client_conn, max_db_connections, default_pool_size)"
        )
    limits = await connection.fetch(_LIMITS)
    for limit, allowed, others, what in limits:
        if needed > allowed - others:
            taken = f", of which others have {others} at present" if others else ""
            raise Fault(
                f"the service may open {needed} connections ({explained}), and {limit} allows "
                f"{allowed}{taken}",
                f"Lower LISTINGS_POOL_SIZE or LISTINGS_WORKERS, or raise {what}",
            )
    left = min(allowed - others for _, allowed, others, _ in limits)
    return f"{needed} at most ({explained}), of {left} that are left for the service"
