"""The objects of a schema as text, to compare schemas that were made in different ways."""

from typing import Any

import psycopg


def catalog(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return the catalog rows about the tables of the application, without their OIDs."""
    inside = "relnamespace = 'public'::regnamespace"
    ours = f"{inside} AND relname !~ 'yoyo'"
    return {
        "relations": _query(url, f"SELECT relname, relkind FROM pg_class WHERE {ours} ORDER BY 1"),
        "columns": _query(
            url,
            "SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,"
            " pg_get_expr(adbin, adrelid), row_number() OVER (PARTITION BY relname ORDER BY attnum)"
            " FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
            " LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
            f" WHERE {ours} AND attnum > 0 AND NOT attisdropped ORDER BY relname, attnum",
        ),
        "indexes": _query(
            url,
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid, indisready"
            f" FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE {ours} ORDER BY 1",
        ),
        "functions": _query(
            url,
            "SELECT proname, pg_get_functiondef(oid) FROM pg_proc"
            " WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
        ),
        "triggers": _query(
            url,
            "SELECT tgname, pg_get_triggerdef(oid), tgenabled FROM pg_trigger"
            " WHERE NOT tgisinternal ORDER BY 1",
        ),
        "constraints": _query(
            url,
            "SELECT conname, pg_get_constraintdef(c.oid) FROM pg_constraint c"
            f" JOIN pg_class ON pg_class.oid = conrelid WHERE {ours} ORDER BY 1",
        ),
        "rights": _query(
            url,
            "SELECT name, grantee::regrole::text, privilege_type FROM ("
            f" SELECT relname, relacl FROM pg_class WHERE {inside}"
            " UNION ALL SELECT relname || '.' || attname, attacl FROM pg_attribute"
            f" JOIN pg_class ON pg_class.oid = attrelid WHERE {inside} AND NOT attisdropped"
            " UNION ALL SELECT proname, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc"
            " WHERE pronamespace = 'public'::regnamespace"
            " UNION ALL SELECT nspname, nspacl FROM pg_namespace WHERE nspname = 'public'"
            ") each (name, acl), aclexplode(acl) WHERE grantee <> grantor ORDER BY 1, 2, 3",
        ),
    }


def _query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()
