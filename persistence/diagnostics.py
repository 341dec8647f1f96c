"""Checks of a database: each returns what it found, or raises Fault with a remedy."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import asyncpg

from persistence import roles
from persistence.dsn import asyncpg_dsn, parameters
from persistence.errors import PersistenceError
from persistence.roles import Execute, Privilege
from persistence.schema import applied_migrations, migration_ids

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_MIN_VERSION: Final = 14
"""The first PostgreSQL with CREATE OR REPLACE TRIGGER, by which a migration keeps the history."""

_TABLES: Final = sorted({privilege.table for privilege in roles.REQUIRED})

# The privileges that the service does not need: on its tables ($1) other than it needs ($2), on
# columns other than those it updates ($3), in the schema, and by membership in a role other than
# its own ($4). An owner has some of them, and a superuser has all.
_SURPLUS_PRIVILEGES: Final = """
    SELECT format('%s ON %s', privilege, name)
    FROM unnest($1::text[]) name, pg_class,
        unnest('{INSERT,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) privilege
    WHERE pg_class.oid = to_regclass(name) AND has_table_privilege(pg_class.oid, privilege)
    AND format('%s ON %s', privilege, name) <> ALL ($2)
    UNION ALL
    SELECT format('UPDATE (%I) ON %s', attname, name)
    FROM unnest($1::text[]) name JOIN pg_attribute ON attrelid = to_regclass(name)
    WHERE attnum > 0 AND NOT attisdropped AND format('%s.%s', name, attname) <> ALL ($3)
    AND has_column_privilege(attrelid, attnum, 'UPDATE')
    UNION ALL
    SELECT format('CREATE ON SCHEMA %I', current_schema())
    WHERE has_schema_privilege(current_schema(), 'CREATE')
    UNION ALL
    SELECT attribute FROM pg_roles, LATERAL (VALUES
        ('SUPERUSER', rolsuper), ('CREATEROLE', rolcreaterole), ('CREATEDB', rolcreatedb),
        ('REPLICATION', rolreplication), ('BYPASSRLS', rolbypassrls)
    ) given (attribute, has) WHERE has AND rolname = current_user
    UNION ALL
    SELECT format('membership in %I', rolname) FROM pg_roles
    WHERE rolname NOT IN (current_user, $4) AND NOT rolsuper AND pg_has_role(oid, 'MEMBER')
"""

_MAX_NAMED: Final = 3  # of the surplus privileges, in a message

_LOGIN_ERRORS: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidPasswordError,
)


class Fault(PersistenceError):
    """A check failed. ``str`` is for users: the problem, and the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.problem = problem


@asynccontextmanager
async def connected(url: str, *, timeout: float) -> AsyncIterator[Connection]:  # noqa: ASYNC109
    """Yield a connection for the checks to the database at ``url``, a libpq URL.

    ``timeout`` is in seconds, to connect and for each statement. Raises Fault, or
    InvalidDatabaseURL.
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
    finally:
        connection.terminate()


async def check_server(connection: Connection) -> str:
    """Return the server's version, the database and the user. Raises Fault when it is too old."""
    version, database, user = await _row(
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
    in_recovery, read_only = await _row(
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


async def require_rights(connection: Connection) -> str:
    """Return the user. Raises Fault when it lacks privileges that the service needs.

    Tables and functions that do not exist are left out.
    """
    user, role, lost = await _row(
        connection,
        """
        SELECT
            quote_ident(current_user),
            (SELECT oid FROM pg_roles WHERE rolname = current_user),
            array_agg(DISTINCT nspname)
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE relname = ANY ($1) AND relkind IN ('r', 'p') AND to_regclass(relname) IS NULL
        """,
        _TABLES,
    )
    if lost:
        raise Fault(
            f"the tables are in schema {', '.join(lost)}, which {user} may not use, or does not "
            "have on its search_path",
            f"GRANT USAGE ON SCHEMA {lost[0]} TO {user}, and have it on the user's search_path",
        )
    missing = [
        privilege
        for privilege in (*roles.REQUIRED, *roles.CALLED)
        if await _has(connection, role, privilege) is False
    ]
    if missing:
        application = await connection.fetchval("SELECT to_regrole($1)::oid", roles.APPLICATION)
        remedy = f"As the owner: GRANT {roles.APPLICATION} TO {user};"
        if not all([await _has(connection, application, privilege) for privilege in missing]):
            remedy = "Run `listings migrate up`, or if it has nothing to do, as the owner: "
            remedy += " ".join(f"GRANT {privilege} TO {user};" for privilege in missing)
        raise Fault(f"{user} lacks " + ", ".join(map(str, missing)), remedy)
    return str(user)


async def check_rights(connection: Connection) -> str:
    """Return which privileges the user has beyond those needed. Raises Fault when it lacks some."""
    user = await require_rights(connection)
    needed = [str(privilege) for privilege in roles.REQUIRED if not privilege.columns]
    updated = [f"{each.table}.{column}" for each in roles.REQUIRED for column in each.columns]
    surplus = await connection.fetch(
        _SURPLUS_PRIVILEGES, _TABLES, needed, updated, roles.APPLICATION
    )
    if surplus:
        some = ", ".join(row[0] for row in surplus[:_MAX_NAMED])
        return (
            f"{user} may do what the service does, and more, such as {some}. "
            "Better for the service is a user who has only its rights: "
            f"CREATE ROLE listings_service LOGIN PASSWORD '...' IN ROLE {roles.APPLICATION}"
        )
    return f"{user} may do what the service does, and no more"


async def _has(
    connection: Connection, role: int | None, privilege: Privilege | Execute
) -> bool | None:
    """Return whether the role with that oid has it; None when there is no such role or object."""
    has: bool | None
    if isinstance(privilege, Execute):
        has = await connection.fetchval(
            "SELECT has_function_privilege($1::oid, to_regprocedure($2)::oid, 'EXECUTE')",
            role,
            privilege.function,
        )
        return has
    has = await connection.fetchval(
        """
        SELECT bool_and(has_column_privilege($1::oid, attrelid, attnum, $2)) FROM pg_attribute
        WHERE attrelid = to_regclass($3) AND attnum > 0 AND NOT attisdropped
        AND ($4::text[] = '{}' OR attname = ANY ($4))
        """,
        role,
        *privilege,
    )
    return has


async def check_connections(connection: Connection, needed: int, explained: str) -> str:
    """Raise Fault when the server allows fewer connections than ``needed``.

    ``explained`` says in messages how many connections of what the service may open.
    """
    allowed: int = await connection.fetchval(
        """
        SELECT least(
            current_setting('max_connections')::int - CASE WHEN rolsuper THEN 0 ELSE
                current_setting('superuser_reserved_connections')::int
                + coalesce(current_setting('reserved_connections', true)::int, 0) END,
            CASE WHEN rolconnlimit >= 0 AND NOT rolsuper THEN rolconnlimit END,
            CASE WHEN datconnlimit >= 0 AND NOT rolsuper THEN datconnlimit END
        )
        FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()
        """
    )
    if needed > allowed:
        raise Fault(
            f"the service may open {needed} connections ({explained}), "
            f"and the server allows {allowed}",
            "Lower LISTINGS_POOL_SIZE or LISTINGS_WORKERS, or raise max_connections or the limit "
            "of the user or database",
        )
    return f"{needed} at most ({explained}), of {allowed} that are allowed"


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


async def check_schema(connection: Connection) -> str:
    """Raise Fault when migrations are missing, or what they made is incomplete or disabled."""
    known, applied = migration_ids(), await applied_migrations(connection.fetch)
    missing = [name for name in known if name not in applied]
    invalid = await connection.fetch(
        """
        SELECT relname, EXISTS (
            SELECT FROM pg_stat_progress_create_index WHERE index_relid = indexrelid
        )
        FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE NOT indisvalid AND indrelid IN (SELECT to_regclass(name) FROM unnest($1::text[]) name)
        """,
        _TABLES,
    )
    for index, building in invalid:
        if building:
            raise Fault(f"index {index} is being built", "Wait until that has ended")
        raise Fault(
            f"index {index} is invalid: a migration was interrupted",
            "Run `listings migrate up`, which builds it again"
            if missing
            else f"Run REINDEX INDEX CONCURRENTLY {index}",
        )
    if missing:
        raise Fault(f"lacks {', '.join(missing)}", "Run `listings migrate up`")
    disabled = await connection.fetch(
        """
        SELECT format('ALTER TABLE %s ENABLE TRIGGER %I;', tgrelid::regclass, tgname)
        FROM pg_trigger WHERE tgenabled = 'D'
        AND tgrelid IN (SELECT to_regclass(name) FROM unnest($1::text[]) name)
        """,
        _TABLES,
    )
    if disabled:
        raise Fault(
            "triggers are disabled, and the history of payments is not kept",
            "Run " + " ".join(statement for (statement,) in disabled),
        )
    if newer := sorted(applied.keys() - known):
        return f"complete; {', '.join(newer)} of a newer version, beside which this one can run"
    return f"complete, up to {known[-1]}"


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


async def _row(connection: Connection, sql: str, *args: object) -> "asyncpg.Record":
    row = await connection.fetchrow(sql, *args)
    assert row is not None  # noqa: S101 - these statements return one row
    return row
