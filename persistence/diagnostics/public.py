"""Privileges of every user, by PUBLIC, that the service does not need.

PostgreSQL grants them by default, those in schema ``public`` up to version 14. Other applications
on the same database may need them.
"""

from typing import Final

from persistence.diagnostics.connection import Connection
from persistence.diagnostics.fault import Advice

_GRANTED: Final = """
    SELECT format('CREATE ON SCHEMA %I', current_schema())
    WHERE has_schema_privilege('public', current_schema(), 'CREATE')
    UNION ALL
    SELECT format('%s ON DATABASE %I', privilege, current_database())
    FROM unnest('{CREATE,TEMPORARY}'::text[]) privilege
    WHERE has_database_privilege('public', current_database(), privilege)
    UNION ALL
    SELECT 'EXECUTE ON FUNCTION '
        || string_agg('pg_catalog.' || oid::regprocedure, ', ' ORDER BY proname)
    FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^(lo_|loread$|lowrite$)'
    AND has_function_privilege('public', oid, 'EXECUTE')
    HAVING count(*) > 0
"""

_NAMES: Final = {"EXECUTE": "EXECUTE ON the large-object functions"}


async def check_public(connection: Connection) -> str:
    """Raise Advice when every user may create objects, or use large objects."""
    granted = [text for (text,) in await connection.fetch(_GRANTED)]
    if granted:
        named = (_NAMES.get(text.partition(" ")[0], text) for text in granted)
        raise Advice(
            f"every user has, by PUBLIC, {', '.join(named)}; the service needs none of it",
            "If no other application on this database does, as a superuser, which some managed "
            "servers do not give: " + " ".join(f"REVOKE {text} FROM PUBLIC;" for text in granted),
        )
    return "PUBLIC may neither create objects nor use large objects"
