"""The history of the payment of each order, which a trigger writes.

It commits with the change or not at all, and includes each change, by the service or by hand. It
takes an update no round trip. Measured against an INSERT in the same statement (a WITH around the
UPDATE): 85 us of PostgreSQL's time instead of 50, for a history that no statement can omit.

The history also stores the idempotency keys: its unique index makes a key take effect once, for
good.

The service sets for its transaction what the row does not have:

- listings.request_id and listings.caller: the request, and its caller;
- listings.request_fields: of a request with a key, the names of the fields that it set. Their
  values are in the columns ``..._after``. By both, a repeated request is distinguished from another
  one with the same key.

A table in use stays writable. The trigger is created first; then the payments that exist are
entered, in batches. Until all are, the first change of an order enters the payment before it.
"""

from psycopg import Connection
from yoyo import step

from persistence.migration_support import create_indexes, set_lock_timeout

__depends__ = {"20251220000002_add_order_payment_fields"}
__transactional__ = False

_FIELDS = (
    "payment_provider",
    "payment_session_id",
    "payment_intent_id",
    "payment_idempotency_key",
    "payment_status",
    "payment_transaction_id",
)
_BATCH = 5_000

# Readers who follow the history go by transaction_id: of two ids of a sequence, the lower one may
# be committed later. Fixed-width columns first. No foreign key to the order: the history outlives
# it, and the trigger names no order that does not exist.
_TABLE = """
    CREATE TABLE IF NOT EXISTS order_payment_events (
        id                             BIGINT       GENERATED ALWAYS AS IDENTITY,
        order_id                       BIGINT       NOT NULL,
        storefront_id                  BIGINT       NOT NULL,
        transaction_id                 XID8         NOT NULL DEFAULT pg_current_xact_id(),
        created_at                     TIMESTAMPTZ  NOT NULL DEFAULT clock_timestamp(),
        database_role                  NAME         NOT NULL DEFAULT session_user,
        payment_provider_before        VARCHAR(50),
        payment_session_id_before      VARCHAR(255),
        payment_intent_id_before       VARCHAR(255),
        payment_idempotency_key_before VARCHAR(255),
        payment_status_before          VARCHAR(50),
        payment_transaction_id_before  VARCHAR(255),
        payment_provider_after         VARCHAR(50),
        payment_session_id_after       VARCHAR(255),
        payment_intent_id_after        VARCHAR(255),
        payment_idempotency_key_after  VARCHAR(255),
        payment_status_after           VARCHAR(50)  NOT NULL,
        payment_transaction_id_after   VARCHAR(255),
        idempotency_key                VARCHAR(255),
        request_fields                 TEXT[],
        request_id                     TEXT,
        caller                         TEXT,

        CONSTRAINT order_payment_events_pkey PRIMARY KEY (order_id, id)
    )
"""


def _changed(column: str) -> str:
    return f"{column}_after IS DISTINCT FROM {column}_before"


# A reference is indexed once, for the event that introduced it; so an order is found by each
# reference that it ever had.
_INDEXES = {
    "idx_order_payment_events_idempotency_key": (
        "UNIQUE INDEX {} ON order_payment_events (idempotency_key)"
        " WHERE idempotency_key IS NOT NULL"
    ),
    "idx_order_payment_events_transaction": "INDEX {} ON order_payment_events (transaction_id)",
} | {
    f"idx_order_payment_events_{column}": (
        f"INDEX {{}} ON order_payment_events ({column}_after) WHERE {_changed(column)}"
    )
    for column in ("payment_session_id", "payment_intent_id", "payment_transaction_id")
}


def _insert(ledger: str, before: str, after: str, source: str = "", **others: str) -> str:
    """Return the INSERT of an event; ``before`` and ``after`` are rows with the columns."""
    values = {"order_id": f"{after}.id", "storefront_id": f"{after}.storefront_id"}
    for field in _FIELDS:
        values[f"{field}_before"] = f"{before}.{field}" if before else "NULL"
        values[f"{field}_after"] = f"{after}.{field}"
    values |= others
    columns = ", ".join(values)
    return f"INSERT INTO {ledger} ({columns}) SELECT {', '.join(values.values())} {source}"


def _has_payment(row: str) -> str:
    references = [field for field in _FIELDS if field != "payment_status"]
    empty = [f"{row}.{field} IS NULL" for field in references]
    return f"NOT ({row}.payment_status = 'pending' AND {' AND '.join(empty)})"


def _first_event(ledger: str, row: str, source: str = "") -> str:
    """Return the INSERT of the payment that ``row`` of ``orders`` had before the history began."""
    since, key = f"{row}.updated_at", f"{row}.payment_idempotency_key"
    return _insert(ledger, "", row, source, created_at=since, idempotency_key=key)


def _record(ledger: str, *, entering: bool) -> str:
    """Return the trigger function; ``entering`` while the payments before it are entered.

    ``ledger`` is the table's name with its schema. A name without it would be resolved in each
    session that makes a change: to a temporary table, or to nothing.
    """
    enter = f"""
        IF TG_OP = 'UPDATE' AND {_has_payment("OLD")} AND NOT EXISTS (
            SELECT FROM {ledger} WHERE order_id = OLD.id
        ) THEN
            {_first_event(ledger, "OLD")};
        END IF;
    """
    record = _insert(
        ledger,
        "OLD",  # its columns are null when the trigger is that of INSERT
        "NEW",
        idempotency_key="""
            CASE WHEN NEW.payment_idempotency_key IS DISTINCT FROM OLD.payment_idempotency_key
            THEN NEW.payment_idempotency_key END""",
        request_fields="""
            string_to_array(nullif(current_setting('listings.request_fields', true), ''), ',')""",
        request_id="nullif(current_setting('listings.request_id', true), '')",
        caller="nullif(current_setting('listings.caller', true), '')",
    )
    # Transactions that notify commit one after the other, fsync included: with NOTIFY in each
    # update, a server made 2,300 updates a second instead of 5,700. So the service notifies after
    # its commits; changes by hand notify here.
    return f"""
        CREATE OR REPLACE FUNCTION record_order_payment_event() RETURNS trigger
        LANGUAGE plpgsql AS $$
        BEGIN
            {enter if entering else ""}
            {record};
            IF current_setting('listings.request_id', true) IS NULL
                OR current_setting('listings.request_id', true) = ''
            THEN
                PERFORM pg_notify('order_payment_events', '');
            END IF;
            RETURN NULL;
        END
        $$
    """


_WITHOUT_EVENT = f"""
    FROM orders WHERE orders.id > %s AND orders.id <= %s AND {_has_payment("orders")}
    AND NOT EXISTS (SELECT FROM order_payment_events WHERE order_id = orders.id)
    ORDER BY orders.id
"""

_CHANGED_ROW = " OR ".join(f"OLD.{field} IS DISTINCT FROM NEW.{field}" for field in _FIELDS)

_TRIGGERS = (
    f"""
    CREATE OR REPLACE TRIGGER order_payment_inserted AFTER INSERT ON orders
    FOR EACH ROW WHEN ({_has_payment("NEW")})
    EXECUTE FUNCTION record_order_payment_event()
    """,
    f"""
    CREATE OR REPLACE TRIGGER order_payment_updated AFTER UPDATE ON orders
    FOR EACH ROW WHEN ({_CHANGED_ROW})
    EXECUTE FUNCTION record_order_payment_event()
    """,
    # Also for the owner of the table and for superusers, whom privileges do not restrict.
    """
    CREATE OR REPLACE FUNCTION refuse_change_of_order_payment_events() RETURNS trigger
    LANGUAGE plpgsql AS $$
    BEGIN
        RAISE insufficient_privilege USING
            message = 'order_payment_events can be added to, and not changed or deleted';
    END
    $$
    """,
    """
    CREATE OR REPLACE TRIGGER order_payment_events_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON order_payment_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_order_payment_events()
    """,
)


def create(connection: Connection) -> None:
    """Create the table and its triggers, then enter the payments that exist."""
    set_lock_timeout(connection)
    connection.execute(_TABLE)
    # While the table is empty: the keys must be unique from the start.
    create_indexes(connection, _INDEXES)
    set_lock_timeout(connection)
    ledger = _qualified(connection)
    connection.execute(_record(ledger, entering=True))
    with connection.transaction():
        for statement in _TRIGGERS:
            connection.execute(statement)
    _enter_payments(connection)
    connection.execute(_record(ledger, entering=False))


def _qualified(connection: Connection) -> str:
    row = connection.execute(
        "SELECT format('%I.order_payment_events', current_schema())"
    ).fetchone()
    assert row is not None  # noqa: S101 - it has no WHERE
    return str(row[0])


def _enter_payments(connection: Connection) -> None:
    """Add the first event of each order that has a payment and no event."""
    last: int | None = 0
    while last is not None:
        with connection.transaction():
            # Locked, so that no update adds the first event at the same time.
            row = connection.execute(
                "SELECT max(id) FROM (SELECT id FROM orders WHERE id > %s"
                " ORDER BY id LIMIT %s FOR NO KEY UPDATE) batch",
                (last, _BATCH),
            ).fetchone()
            first, last = last, row[0] if row else None
            insert = _first_event("order_payment_events", "orders", _WITHOUT_EVENT)
            connection.execute(insert, (first, last))


def drop(connection: Connection) -> None:
    """Drop the table with its data, and the triggers that write it."""
    set_lock_timeout(connection)
    with connection.transaction():
        connection.execute("DROP TRIGGER IF EXISTS order_payment_inserted ON orders")
        connection.execute("DROP TRIGGER IF EXISTS order_payment_updated ON orders")
        connection.execute("DROP TABLE IF EXISTS order_payment_events")
        connection.execute("DROP FUNCTION IF EXISTS record_order_payment_event")
        connection.execute("DROP FUNCTION IF EXISTS refuse_change_of_order_payment_events")


step(create, drop)
