"""CHECKs of what a trigger or another program tells the ledger, and of the orders' updated_at.

The trigger cuts what it is told. The CHECKs hold for what is written without it: by the service,
into refused_payment_events, and by an owner. An updated_at after 9999 is none that an update could
move forward, and programs that go by it would never see that the order has changed.

They come as NOT VALID, then the rows are checked; readers and writers do not wait meanwhile. Where
rows do not comply:

- Orders keep the migration from adding any CHECK, which would refuse each change of such an order.
  It names them, and the statement that mends them.
- Events, in either table, are history and stay as they are. Their CHECK stays NOT VALID, and holds
  for new events.

Of the 983,000 instructions that PostgreSQL executes for an update, as cachegrind counts them, the
CHECK of orders takes 1.4 % more, and that of order_payment_events 2.5.

A run that was interrupted is continued by the next one.
"""

import logging

from psycopg import Connection, errors
from yoyo import step

from persistence.migration_support import (
    MigrationAborted,
    add_checks,
    drop_checks,
    set_lock_timeout,
    validate_check,
)

__depends__ = {"20261201000001_create_payment_history_epochs"}
__transactional__ = False

_LAST = "timestamptz '9999-12-31 23:59:59.999999+00'"
_UPDATED_AT = {"orders_updated_at_in_range": f"updated_at <= {_LAST}"}

# Characters: an x-request-id, and the subject of a token.
_TEXTS = "length(request_id) <= 128 AND length(caller) <= 255"
# PostgreSQL prepares a CHECK for each INSERT, and a function once a session: spelled out, it would
# be 3.9 %.
_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION payment_event_texts_bounded(request_id text, caller text)
    RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
    BEGIN
        RETURN {_TEXTS};
    END
    $$
"""
# Each role that writes an event calls it, for the CHECK.
_GRANT = "GRANT EXECUTE ON FUNCTION payment_event_texts_bounded TO PUBLIC"
_BOUNDED = "payment_event_texts_bounded(request_id, caller)"
_EVENTS = {
    "order_payment_events": {"order_payment_events_texts_bounded": _BOUNDED},
    "refused_payment_events": {
        "refused_payment_events_texts_bounded": f"{_BOUNDED} AND length(reason) <= 50"
    },
}
_SHOWN = 10

_KEPT = "%s stays NOT VALID: rows of %s do not comply, and are kept: %s"
_log = logging.getLogger("persistence.migrations")


def create(connection: Connection) -> None:
    """Add the CHECKs, then check the rows. Raises MigrationAborted."""
    set_lock_timeout(connection)
    _require_updated_at(connection)
    add_checks(connection, "orders", _UPDATED_AT)
    for name in _UPDATED_AT:
        try:
            validate_check(connection, "orders", name)
        except errors.CheckViolation:  # of a row that was written just before
            drop_checks(connection, "orders", _UPDATED_AT)
            _require_updated_at(connection)
            raise
    connection.execute(_FUNCTION)
    connection.execute(_GRANT)
    for table, checks in _EVENTS.items():
        add_checks(connection, table, checks)
        for name, condition in checks.items():
            try:
                validate_check(connection, table, name)
            except errors.CheckViolation:
                ids = _violating(connection, table, condition)
                _log.warning(_KEPT, name, table, ids)


def _require_updated_at(connection: Connection) -> None:
    for condition in _UPDATED_AT.values():
        if ids := _violating(connection, "orders", condition):
            raise MigrationAborted(
                f"the updated_at of some orders is after 9999, by their ids: {ids}. "
                f"Run UPDATE orders SET updated_at = now() WHERE NOT ({condition}); then migrate "
                "again"
            )


def _violating(connection: Connection, table: str, condition: str) -> str:
    """Return the ids of the rows that do not comply, or some of them and how many more."""
    rows = connection.execute(f"SELECT id FROM {table} WHERE NOT ({condition}) ORDER BY id")
    ids = [str(row[0]) for row in rows]
    if len(ids) > _SHOWN:
        ids[_SHOWN:] = [f"and {len(ids) - _SHOWN} more"]
    return ", ".join(ids)


def drop(connection: Connection) -> None:
    """Drop the CHECKs. What the tables have stays."""
    set_lock_timeout(connection)
    drop_checks(connection, "orders", _UPDATED_AT)
    for table, checks in _EVENTS.items():
        drop_checks(connection, table, checks)
    connection.execute("DROP FUNCTION IF EXISTS payment_event_texts_bounded")


step(create, drop)
