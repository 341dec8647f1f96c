"""Compares the schema of a database with that of the migrated template."""

from typing import Final

import psycopg
from psycopg import sql

_FIRST_OF_USERS: Final = 16384
"""OIDs below are of objects made by initdb: FirstNormalObjectId in PostgreSQL's sources."""

_FILLED: Final = ("payment_history_epochs", "status_words")

_FEW_ROWS: Final = 1_000

_VOLATILE: Final = {
    # Storage and row counts, which VACUUM, ANALYZE and TRUNCATE change.
    "pg_class": (
        "relfilenode",
        "relpages",
        "reltuples",
        "relallvisible",
        "relallfrozen",
        "relfrozenxid",
        "relminmxid",
    )
}

_CATALOGS: Final = """
    SELECT relname, attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared
        AND attnum = 1
    ORDER BY relname
"""

_OF_DATABASE: Final = """
    SELECT datallowconn, datconnlimit, datacl::text,
        (SELECT array_agg(s::text ORDER BY s::text) FROM pg_db_role_setting s
         WHERE setdatabase = d.oid)
    FROM pg_database d WHERE datname = current_database()
"""

_TABLES: Final = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY relname
"""


def fingerprint(url: str) -> str:
    """Return a text that is equal for all copies of a database, whatever rows their tables have.

    It covers each row of the catalog about tables, columns, indexes, functions, rights and so on;
    the statistics that ANALYZE keeps; the settings of the database; and the tables that
    migrations fill.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        return _fingerprint(connection)


def empty(url: str, expected: str) -> bool:
    """Delete all rows and start the sequences anew, if the fingerprint is the expected one.

    Returns whether it is. Ends all other sessions on the database.
    """
    try:
        connection = psycopg.connect(url, autocommit=True)
    except psycopg.OperationalError:
        return False
    with connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        if _fingerprint(connection) != expected:
            return False
        # A trigger forbids to change the history, and the refused events.
        connection.execute("SET session_replication_role = replica")
        for table in _tables(connection):
            if not _is_kept(table):
                _empty_table(connection, sql.Identifier(table))
        connection.execute(
            "SELECT setval(format('%%I.%%I', schemaname, sequencename), start_value, false)"
            " FROM pg_sequences WHERE sequencename <> ALL (%s)",
            ([f"{table}_id_seq" for table in _FILLED],),
        )
        return True


def _empty_table(connection: psycopg.Connection, table: sql.Identifier) -> None:
    """Delete the rows, or if they are many, truncate the table, which takes 25 ms."""
    first = sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT {}) t").format(table, _FEW_ROWS)
    row = connection.execute(first).fetchone()
    statement = "TRUNCATE {}" if row == (_FEW_ROWS,) else "DELETE FROM {}"
    connection.execute(sql.SQL(statement).format(table))


def _fingerprint(connection: psycopg.Connection) -> str:
    parts = [
        sql.SQL("SELECT {}, count(*), sum(hashtextextended({}, 0)) FROM {} t WHERE {}").format(
            sql.Literal(name), _text(name), sql.Identifier(name), _is_of_users(name, key)
        )
        for name, key in connection.execute(_CATALOGS).fetchall()
    ]
    parts += [
        sql.SQL("SELECT {}, count(*), sum(hashtextextended(t::text, 0)) FROM {} t").format(
            sql.Literal(name), sql.Identifier("public", name)
        )
        for name in _tables(connection)
        if _is_kept(name)
    ]
    found = connection.execute(sql.SQL(" UNION ALL ").join(parts)).fetchall()
    return repr((connection.execute(_OF_DATABASE).fetchone(), found))


def _text(name: str) -> sql.Composable:
    if name in _VOLATILE:
        return sql.SQL("(to_jsonb(t) - {}::text[])::text").format(
            sql.Literal(list(_VOLATILE[name]))
        )
    return sql.SQL("t::text")


def _is_of_users(name: str, key: str) -> sql.Composable:
    """Schemas are few, and initdb makes the one that matters."""
    if name == "pg_namespace":
        return sql.SQL("true")
    return sql.SQL("{}::oid >= {}").format(sql.Identifier(key), sql.Literal(_FIRST_OF_USERS))


def _tables(connection: psycopg.Connection) -> list[str]:
    return [name for (name,) in connection.execute(_TABLES).fetchall()]


def _is_kept(table: str) -> bool:
    """Return whether migrations have filled the table."""
    return table.lstrip("_").startswith("yoyo") or table in _FILLED
