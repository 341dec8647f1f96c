"""Privileges of the user that the service connects as, and whether it finds the tables."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from persistence import roles
from persistence.diagnostics.connection import Connection, Fetches, row
from persistence.diagnostics.fault import Advice, Fault
from persistence.diagnostics.setting_places import places
from persistence.roles import Execute, Privilege

_TABLES: Final = sorted({privilege.table for privilege in roles.REQUIRED})

# OFFSET 0 keeps PostgreSQL from computing the columns anew for each attribute.
_LACKING: Final = """
    SELECT number, exists FROM (
        SELECT number, relation IS NOT NULL AS exists,
            columns = '{}' AND coalesce(has_table_privilege(role, relation, privilege), false)
            OR coalesce((
                SELECT bool_and(has_column_privilege(role, relation, attnum, privilege))
                FROM pg_attribute
                WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped
                AND (columns = '{}' OR attname = ANY (columns))
            ), false) AS allowed
        FROM coalesce($5::oid, current_user::regrole::oid) role, (
            SELECT number, privilege, to_regclass(name)::oid AS relation,
                string_to_array(given, ',')::name[] AS columns
            FROM unnest($1::text[], $2::text[], $3::text[])
                WITH ORDINALITY _ (privilege, name, given, number)
            OFFSET 0
        ) required
        UNION ALL
        SELECT cardinality($1) + number, function IS NOT NULL,
            coalesce(has_function_privilege(role, function, 'EXECUTE'), false)
        FROM coalesce($5::oid, current_user::regrole::oid) role, (
            SELECT number, to_regprocedure(signature)::oid AS function
            FROM unnest($4::text[]) WITH ORDINALITY _ (signature, number)
            OFFSET 0
        ) called
    ) each WHERE NOT allowed ORDER BY number
"""

# Only of a schema that has the tables of this service: "orders" is a common name.
_HIDDEN: Final = """
    SELECT quote_ident(nspname), has_schema_privilege(pg_namespace.oid, 'USAGE')
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relname = ANY ($1) AND relkind = 'r' AND to_regclass(quote_ident(relname)) IS NULL
    GROUP BY pg_namespace.oid HAVING 'order_payment_events' = ANY (array_agg(relname))
    ORDER BY pg_namespace.oid
"""

# The privileges that the service does not need: on its tables ($1) other than it needs ($2), on
# columns other than those it updates ($3), in the schema and the database, and by membership in a
# role other than its own ($4). An owner has some of them, and a superuser has all. Those of every
# user are not among them.
_SURPLUS: Final = """
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
    AND NOT has_schema_privilege('public', current_schema(), 'CREATE')
    UNION ALL
    SELECT format('%s ON DATABASE %I', privilege, current_database())
    FROM unnest('{CREATE,TEMPORARY}'::text[]) privilege
    WHERE has_database_privilege(current_database(), privilege)
    AND NOT has_database_privilege('public', current_database(), privilege)
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


class Lacking(NamedTuple):
    """A privilege that a user lacks."""

    privilege: Privilege | Execute
    exists: bool
    """Whether there is such a table or function for the session."""


class Lookup:
    """Finds out which of some privileges a user lacks, in one statement."""

    def __init__(self, privileges: Iterable[Privilege], functions: Iterable[Execute]) -> None:
        tables, called = tuple(privileges), tuple(functions)
        self._all: tuple[Privilege | Execute, ...] = (*tables, *called)
        self._args = (
            [each.name for each in tables],
            [each.table for each in tables],
            [",".join(each.columns) for each in tables],
            [each.function for each in called],
        )

    async def lacking(self, database: Fetches, role: int | None = None) -> list[Lacking]:
        """Return those that the role with that oid lacks; the session's user without one.

        A function for CHECKs is not among them when it does not exist: neither do the CHECKs. No
        locks are taken. Raises what ``database`` raises.
        """
        rows = await database.fetch(_LACKING, *self._args, role)
        lacking = (Lacking(self._all[number - 1], exists) for number, exists in rows)
        return [
            each
            for each in lacking
            if each.exists
            or not (isinstance(each.privilege, Execute) and each.privilege.is_for_checks)
        ]


_NEEDED: Final = Lookup(roles.REQUIRED, roles.CALLED)
_OF_SYSTEM: Final = Lookup((), (roles.SYSTEM,))


async def require_rights(connection: Connection) -> str:
    """Return the user. Raises Fault when it does not find the tables, or lacks privileges.

    Tables and functions that exist in no schema are left out.
    """
    user: str
    user, database = await row(
        connection, "SELECT quote_ident(current_user), quote_ident(current_database())"
    )
    await _require_search_path(connection, user, database)
    missing = [each.privilege for each in await _NEEDED.lacking(connection) if each.exists]
    if missing:
        application = await connection.fetchval("SELECT to_regrole($1)::oid", roles.APPLICATION)
        remedy = f"As the owner: GRANT {roles.APPLICATION} TO {user};"
        if application is None or not {*missing}.isdisjoint(
            each.privilege for each in await _NEEDED.lacking(connection, application)
        ):
            remedy = "Run `listings migrate up`, or if it has nothing to do, as the owner: "
            remedy += " ".join(f"GRANT {privilege} TO {user};" for privilege in missing)
        raise Fault(f"{user} lacks " + ", ".join(map(str, missing)), remedy)
    if await _OF_SYSTEM.lacking(connection):
        raise Fault(
            f"{user} lacks {roles.SYSTEM}",
            f"As a superuser, or the administrator of a managed server: GRANT {roles.SYSTEM} TO "
            f"{user};",
        )
    return user


async def _require_search_path(connection: Connection, user: str, database: str) -> None:
    hidden = await connection.fetchrow(_HIDDEN, _TABLES)
    if hidden is None:
        return
    schema, may_use = hidden
    if not may_use:
        raise Fault(
            f"the tables are in schema {schema}, which {user} may not use",
            f"As the owner: GRANT USAGE ON SCHEMA {schema} TO {user};",
        )
    search_path = await connection.fetchval("SELECT current_setting('search_path')")
    place, *_ = await places(connection, "search_path", [search_path], schema)
    raise Fault(
        f"the tables are in schema {schema}, and search_path is {search_path} ({place.described})",
        place.remedy
        if place.is_of_connection
        else f"Run ALTER ROLE {user} IN DATABASE {database} SET search_path = {schema};",
    )


async def check_rights(connection: Connection) -> str:
    """Raise Fault when the user lacks privileges, Advice when it has more than it needs."""
    user = await require_rights(connection)
    needed = [str(privilege) for privilege in roles.REQUIRED if not privilege.columns]
    updated = [f"{each.table}.{column}" for each in roles.REQUIRED for column in each.columns]
    surplus = await connection.fetch(_SURPLUS, _TABLES, needed, updated, roles.APPLICATION)
    if surplus:
        some = ", ".join(each[0] for each in surplus[:_MAX_NAMED])
        raise Advice(
            f"{user} may do what the service does, and more, such as {some}",
            "Better for the service is a user who has only its rights: "
            f"CREATE ROLE listings_service LOGIN PASSWORD '...' IN ROLE {roles.APPLICATION}",
        )
    return f"{user} may do what the service does, and no more"
