"""The role of the service, ``listings_app``, with the privileges that it needs and no others.

An attacker with a connection of the service can read orders and the history, and set payments. The
attacker can neither add nor delete an order, nor change another column or the schema, nor write the
history by hand: the trigger function writes it, with the privileges of its owner. Two rules protect
these. The functions that it calls are found in pg_catalog alone, whichever search_path the session
has. And no other role may create a trigger with it, on a table of its own, which would add events
without payments.

Of the 60 us of an update in PostgreSQL 18, without its commit, the privileges of the owner take
nothing that can be measured, and the search_path 2 us (median of 15 rounds of 10,000 updates, in
turn). pgbench shows no difference.

A role belongs to all databases of the server. This one cannot log in: the user that the service
logs in as is a member of it. A rollback revokes its privileges in this database, and keeps the
role, which other databases may use.
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

# REVOKE on a table includes the privileges on its columns.
_REVOKE = """
    GRANT EXECUTE ON FUNCTION record_order_payment_event() TO public;
    ALTER FUNCTION record_order_payment_event() SECURITY INVOKER RESET search_path;
    REVOKE SELECT, UPDATE ON orders, order_payment_events, _yoyo_migration FROM listings_app;
"""


def grant(connection: Connection) -> None:
    """Create the role if there is none, and grant it all privileges in one transaction."""
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
    """Revoke the privileges, and have the trigger write with those of the user of each change.

    That user then needs INSERT on order_payment_events.
    """
    set_lock_timeout(connection)
    with connection.transaction():
        connection.execute(_REVOKE)
        connection.execute(f"REVOKE USAGE ON SCHEMA {_schema(connection)} FROM listings_app")


step(grant, revoke)
