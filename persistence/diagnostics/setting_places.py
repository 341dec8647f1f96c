"""Where a setting of PostgreSQL is set for the sessions of a user, and how to take it back there.

https://www.postgresql.org/docs/current/config-setting.html
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from persistence.diagnostics.connection import Connection
from persistence.diagnostics.fault import AS_SUPERUSER

_PLACES: Final = """
    SELECT setting, source, quote_ident(session_user), quote_ident(current_database())
    FROM pg_settings WHERE name = $1
    UNION ALL
    SELECT substr(each, strpos(each, '=') + 1),
        CASE
            WHEN setrole = 0 THEN CASE WHEN setdatabase = 0 THEN 'global' ELSE 'database' END
            WHEN setdatabase = 0 THEN 'user'
            ELSE 'database user'
        END,
        quote_ident(session_user), quote_ident(current_database())
    FROM pg_db_role_setting, unnest(setconfig) each
    WHERE starts_with(each, $1 || '=')
    AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
"""


class Place(NamedTuple):
    """A place where a setting has one of the values that were asked for."""

    described: str
    """Such as "by ALTER ROLE shop"."""
    remedy: str
    is_of_connection: bool = False
    """Whether it is the URL that sets it, which takes precedence over all others."""


async def places(
    connection: Connection, name: str, values: Sequence[str], right: str
) -> list[Place]:
    """Return where the setting has one of ``values``; empty when it has none in this session.

    The first place is the one that counts for the session. The others, which it hides, would count
    once it is gone. ``right`` is the value to set, where there is nothing to take back.
    """
    rows = await connection.fetch(_PLACES, name)
    if not rows or rows[0][0] not in values:
        return []
    found = {
        source: _place(source, name, right, user, database)
        for value, source, user, database in rows
        if value in values
    }
    return list(found.values())


def _place(source: str, name: str, right: str, user: str, database: str) -> Place:
    altered = {
        "global": "ROLE ALL",
        "database": f"DATABASE {database}",
        "user": f"ROLE {user}",
        "database user": f"ROLE {user} IN DATABASE {database}",
    }
    if source in altered:
        statement = f"ALTER {altered[source]}"
        return Place(f"by {statement}", f"{statement} RESET {name};")
    match source:
        case "client":
            return Place(
                "by the options of the connection",
                f"Remove {name} from the options in LISTINGS_DATABASE_URL.",
                is_of_connection=True,
            )
        case "command line":
            return Place(
                "by the command line of the server",
                f"Start the server without -c {name}=….",
            )
        case "default":
            described = "by default"
        case _:
            described = "in the configuration of the server"
    statements = f"ALTER SYSTEM SET {name} = {right}; SELECT pg_reload_conf();"
    return Place(described, f"{AS_SUPERUSER.capitalize()}: {statements}")
