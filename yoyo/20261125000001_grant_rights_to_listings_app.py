"""The role of the service, ``listings_app``, with the rights that it needs and no more.

Whoever gets hold of its connection can read orders and the history and set payments. They can
neither make nor delete an order, nor change another column, nor touch the schema, nor write the
history by hand: the trigger does that, from now on with the rights of its owner. Two things keep
that from being borrowed. What the trigger function calls is found in pg_catalog alone, whatever
search_path the session has; and nobody else may make a trigger of it, on a table of their own, that
would enter what was never paid.

Of an update's 60 us in PostgreSQL 18, without its commit, the owner's rights cost nothing that can
be measured, and the search_path 2 us (median of 15 rounds of 10,000 updates, in turn). pgbench
shows no difference.

A role belongs to all databases of the server. It cannot log in: a user of the service's own is a
member of it. A rollback takes its rights in this database away and leaves the role, which others
may use.
"""

from psycopg import Connection, errors
from yoyo import step

from persistence.migration_support import MigrationAborted, set_lock_timeout

__depends__ = {"20261123000002_index_orders_for_lists"}
__transactional__ = False

_GRANT = """
    GRANT SELECT ON orders, order_payment_events, _yoyo_migration TO listings_app;
    GRANT UPDATE (
        payment_provider,
        payment_session_id,
        payment_intent_id,
        payment_idempotency_key,
        payment_status,
        payment_transaction_id,
        updated_at
    ) ON orders TO listings_app;
    ALTER FUNCTION record_order_payment_event()
        SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
    REVOKE EXECUTE ON FUNCTION record_order_payment_event() FROM public;
"""

# Those on a table take those on its columns along.
_REVOKE = """
    GRANT EXECUTE ON FUNCTION record_order_payment_event() TO public;
    ALTER FUNCTION record_order_payment_event() SECURITY INVOKER RESET search_path;
    REVOKE SELECT, UPDATE ON orders, order_payment_events, _yoyo_migration FROM listings_app;
"""


def grant(connection: Connection) -> None:
    """Make the role if there is none, and grant it its rights: all of them or none."""
    set_lock_timeout(connection)
    _create_role(connection)
    with connection.transaction():
        connection.execute(_GRANT)
        connection.execute(f"GRANT USAGE ON SCHEMA {_schema(connection)} TO listings_app")


def _create_role(connection: Connection) -> None:
    if connection.execute("SELECT to_regrole('listings_app')").fetchone() != (None,):
        return
    try:
        connection.execute("CREATE ROLE listings_app NOLOGIN")
    except (errors.DuplicateObject, errors.UniqueViolation):
        pass  # another database of the server has been migrated at the same time
    except errors.InsufficientPrivilege as error:
        raise MigrationAborted(
            f"there is no role listings_app, and {connection.info.user} may not create it: let an "
            "administrator run CREATE ROLE listings_app NOLOGIN; then migrate again"
        ) from error


def _schema(connection: Connection) -> str:
    row = connection.execute("SELECT quote_ident(current_schema())").fetchone()
    assert row is not None  # noqa: S101 - it has no WHERE
    return str(row[0])


def revoke(connection: Connection) -> None:
    """Take the rights away again, and let the trigger write with those of whoever makes a change.

    They need INSERT on order_payment_events then.
    """
    set_lock_timeout(connection)
    with connection.transaction():
        connection.execute(_REVOKE)
        connection.execute(f"REVOKE USAGE ON SCHEMA {_schema(connection)} FROM listings_app")


step(grant, revoke)
