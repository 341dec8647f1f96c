"""What the word of a payment's status means, and what the rules of payments need besides.

``payment_state`` is the number of a state. It is null while nothing has derived it from the word:
in an order whose payment has not begun, and after a change of the word by hand, or by a worker of
the version before. ``status_words`` has the meanings by which the orders have been classified.

``payment_version`` changes with each change of the payment. The service writes it, as the id of its
transaction, and sets ``listings.payment_event`` for the history. Where that is not set, or another
trigger makes the change, it is none of the service: then the trigger writes the version, and what
the word's change leaves undecided.

In the history, an event keeps what its request asked for where that may differ from what the order
then has: time, amounts, currency; of a change by hand, the new time and amounts.
``request_digest`` distinguishes the requests with one key. The first event with a key has it in
``idempotency_key``, which is unique; further ones have it in ``further_idempotency_key``, unique
with the digest.

A table in use stays writable, also for workers of the version before, which may go on meanwhile and
afterwards. The columns come without a rewrite; then the triggers; then the orders whose payment has
begun are classified, in batches. The trigger function of the version before stays, for the
rollback.

Of a million orders in full pages, 920,000 were classified in 175 seconds, on two cores with other
load and 100 updates a second by the version before: 3.5 GB of WAL, most of it images of pages after
checkpoints. The slowest update took 62 ms; half of them took 3.9 ms, and 3.7 before. Without pauses
it was 93 seconds, 2.1 GB and 382 ms. With 2,000 consecutive orders in a batch it was 171 seconds,
6.4 GB and 614 ms, and the indexes were twice as large afterwards.
"""

from functools import partial

from psycopg import Connection
from yoyo import step

from persistence.migration_support import (
    change_rows,
    change_table,
    create_indexes,
    set_lock_timeout,
)

__depends__ = {"20261130000001_create_status_words"}
__transactional__ = False

_FIELDS = (
    "payment_provider",
    "payment_session_id",
    "payment_intent_id",
    "payment_idempotency_key",
    "payment_status",
    "payment_transaction_id",
)
_AMOUNTS = ("captured_amount", "refunded_amount")
_BATCH, _PASSES = 500, 10

# Fixed-width columns first.
_COLUMNS = """
    ALTER TABLE orders
        ADD COLUMN IF NOT EXISTS captured_amount       BIGINT,
        ADD COLUMN IF NOT EXISTS refunded_amount       BIGINT,
        ADD COLUMN IF NOT EXISTS payment_event_time    TIMESTAMPTZ,
        ADD COLUMN IF NOT EXISTS payment_status_since  TIMESTAMPTZ,
        ADD COLUMN IF NOT EXISTS payment_version       XID8,
        ADD COLUMN IF NOT EXISTS payment_state         SMALLINT,
        ADD COLUMN IF NOT EXISTS contested_from        SMALLINT,
        ADD COLUMN IF NOT EXISTS payment_session_stale BOOLEAN NOT NULL DEFAULT false,
        ADD COLUMN IF NOT EXISTS payment_intent_stale  BOOLEAN NOT NULL DEFAULT false
"""

# PostgreSQL reads the text of a CHECK anew for each statement that writes a row, which takes 5 us
# of the 150 of an update. So the trigger checks what the service has not written.
_VALID = {
    "orders_payment_states_known": (
        "NEW.payment_state BETWEEN 1 AND 14 AND NEW.contested_from BETWEEN 1 AND 14"
    ),
    "orders_payment_amounts_not_negative": "least(NEW.captured_amount, NEW.refunded_amount) >= 0",
}
_NEW_ORDER_COLUMNS = (
    *_AMOUNTS,
    "payment_event_time",
    "payment_status_since",
    "payment_version",
    "payment_state",
    "contested_from",
    "payment_session_stale",
    "payment_intent_stale",
)

_EVENT_COLUMNS = {
    "captured_amount": "BIGINT",
    "refunded_amount": "BIGINT",
    "payment_event_time": "TIMESTAMPTZ",
    "request_digest": "UUID",  # 128 bits
    "payment_state_before": "SMALLINT",
    "payment_state_after": "SMALLINT",
    "currency": "VARCHAR(3)",
    "further_idempotency_key": "VARCHAR(255)",
    "named_fields": "SMALLINT",
    "override_reason": "VARCHAR(500)",
}

# Characters: what the service takes of an x-request-id, and of a token's subject; and more than all
# names of fields have. Others may set more.
_MAX_REQUEST_ID, _MAX_CALLER, _MAX_REQUEST_FIELDS = 128, 255, 255

# The bits of the amounts and of the reason of an override in named_fields. From the lowest, they
# are those of the six fields, captured and refunded amount, time, currency, override_reason.
_RECORDED_ALWAYS = 0b100_1100_0000

_INDEXES = {
    "idx_order_payment_events_further_idempotency_key": (
        "UNIQUE INDEX {} ON order_payment_events (further_idempotency_key, request_digest)"
        " WHERE further_idempotency_key IS NOT NULL"
    ),
}

_UNKNOWN = 1

_NORMALIZED = (
    # Up to PostgreSQL 15 at least, E'\v' is the letter.
    r"translate(orders.payment_status, E'ABCDEFGHIJKLMNOPQRSTUVWXYZ-_ \t\n\r\f\x0b',"
    " 'abcdefghijklmnopqrstuvwxyz')"
)


def _has_payment(row: str) -> str:
    references = [field for field in _FIELDS if field != "payment_status"]
    empty = [f"{row}.{field} IS NULL" for field in references]
    return f"NOT ({row}.payment_status = 'pending' AND {' AND '.join(empty)})"


def _differ(columns: tuple[str, ...]) -> str:
    return " OR ".join(f"OLD.{column} IS DISTINCT FROM NEW.{column}" for column in columns)


def _record(schema: str) -> str:
    """Return the trigger function. Of a trigger of INSERT, the columns of OLD are null.

    Whether anything has changed could be the condition of the trigger. But PostgreSQL reads the
    text of such a condition anew for each statement: 13 us of the 150 that an update takes.
    """
    values = {"order_id": "NEW.id", "storefront_id": "NEW.storefront_id"}
    for field in _FIELDS:
        values |= {f"{field}_before": f"OLD.{field}", f"{field}_after": f"NEW.{field}"}
    values |= {
        "payment_state_before": "OLD.payment_state",
        "payment_state_after": "NEW.payment_state",
    }
    requested = values | {
        "idempotency_key": "CASE WHEN is_first THEN NEW.payment_idempotency_key END",
        "further_idempotency_key": "CASE WHEN is_further THEN NEW.payment_idempotency_key END",
        # An explicit cast cuts, and costs less than left().
        "request_id": f"request[1]::varchar({_MAX_REQUEST_ID})",
        "caller": f"nullif(request[2], '')::varchar({_MAX_CALLER})",
        "named_fields": "named",
        "request_digest": "nullif(request[4], '')::uuid",
        "payment_event_time": "(details ->> 'payment_event_time')::timestamptz",
        "captured_amount": "(details ->> 'captured_amount')::bigint",
        "refunded_amount": "(details ->> 'refunded_amount')::bigint",
        "currency": "details ->> 'currency'",
        "override_reason": "details ->> 'override_reason'",
    }
    # Of what is changed by hand, the new value is what was asked for.
    by_hand = values | {
        "idempotency_key": _if_changed("payment_idempotency_key"),
        "request_fields": f"""
            string_to_array(nullif(left(
                current_setting('listings.request_fields', true), {_MAX_REQUEST_FIELDS}
            ), ''), ',')""",
        "request_id": f"""
            nullif(left(current_setting('listings.request_id', true), {_MAX_REQUEST_ID}), '')""",
        "caller": f"nullif(left(current_setting('listings.caller', true), {_MAX_CALLER}), '')",
        **{name: _if_changed(name) for name in (*_AMOUNTS, "payment_event_time")},
    }
    return f"""
        CREATE OR REPLACE FUNCTION record_payment_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            -- Of the service: id of the request, caller, fields, digest, details.
            request text[] :=
                string_to_array(current_setting('listings.payment_event', true), E'\\x1f');
            named integer;
            details jsonb;
            is_first boolean := false;
            is_further boolean := false;
            is_other_state boolean;
            is_other_word boolean;
            is_to_complete boolean;
            completing text;
        BEGIN
            -- A session may keep what it has set. It counts for the service, which changes the
            -- version with the payment, and otherwise updated_at alone; not for what triggers of
            -- the shop change meanwhile.
            IF TG_OP = 'UPDATE' AND NEW.payment_version IS DISTINCT FROM OLD.payment_version
                AND pg_trigger_depth() = 1
            THEN
                named := request[3];
            ELSIF TG_OP = 'UPDATE' AND request[3] IS NOT NULL AND pg_trigger_depth() = 1
                AND NEW.updated_at IS DISTINCT FROM OLD.updated_at
                AND NOT ({_differ((*_FIELDS, *_AMOUNTS, "payment_event_time"))}
                    OR NEW.payment_state IS DISTINCT FROM
                        coalesce(OLD.payment_state, NEW.payment_state))
            THEN
                named := request[3];
                IF request[4] = '' AND named & {_RECORDED_ALWAYS} = 0 THEN
                    -- With a key, there is an event all the same, by which a repetition is
                    -- recognized; and of amounts and overrides, what was asked for.
                    RETURN NULL;
                END IF;
            END IF;
            IF named IS NOT NULL THEN
                IF request[4] <> '' THEN
                    -- The order has the key already, or its history.
                    is_further :=
                        NEW.payment_idempotency_key IS NOT DISTINCT FROM OLD.payment_idempotency_key
                        OR coalesce(current_setting('listings.further_use', true), '') = 'on';
                    is_first := NOT is_further;
                END IF;
                IF request[5] <> '' THEN
                    details := request[5];
                END IF;
                {_insert(schema, requested)};
                RETURN NULL;
            END IF;

            -- By hand, by a trigger, by an INSERT, or by a worker of the version before.
            {_check_by_hand()}
            is_other_state := NEW.payment_state IS DISTINCT FROM OLD.payment_state;
            IF TG_OP = 'UPDATE' AND NOT ({_differ((*_FIELDS, *_AMOUNTS))}
                -- Also without the word: because it means something else by now, say. But not what
                -- derives a state that was null, and what the UPDATE below makes of it.
                OR ((OLD.payment_event_time IS DISTINCT FROM NEW.payment_event_time
                        OR (is_other_state AND OLD.payment_state IS NOT NULL))
                    AND current_setting('listings.completing', true)
                        IS DISTINCT FROM pg_trigger_depth()::text))
            THEN
                RETURN NULL;
            END IF;
            -- An INSERT has the version already, unless a later trigger has brought the payment.
            is_to_complete := CASE TG_OP
                WHEN 'INSERT' THEN NEW.payment_status_since IS NULL
                ELSE NEW.payment_version IS NOT DISTINCT FROM OLD.payment_version
            END;
            is_other_word := is_to_complete AND TG_OP = 'UPDATE' AND NOT is_other_state
                AND NEW.payment_status IS DISTINCT FROM OLD.payment_status;
            IF is_other_word THEN
                NEW.payment_state := NULL;
            END IF;
            -- Before the UPDATE, by which triggers of the shop run, and may change the payment.
            {_insert(schema, by_hand)};
            IF is_to_complete THEN
                -- The depth of the triggers that the second UPDATE runs. Within these, others may
                -- run, of other changes.
                completing := current_setting('listings.completing', true);
                PERFORM set_config('listings.completing', (pg_trigger_depth() + 1)::text, true);
                -- A second UPDATE, since this trigger runs after the first. One that runs before
                -- would lock the row before the conditions of the service are checked.
                UPDATE {schema}.orders SET
                    payment_version = pg_current_xact_id(),
                    payment_state = NEW.payment_state,
                    contested_from = CASE WHEN NOT is_other_word THEN contested_from END,
                    payment_event_time = CASE WHEN NOT is_other_word THEN payment_event_time END,
                    payment_status_since = CASE
                        WHEN NEW.payment_status_since IS DISTINCT FROM OLD.payment_status_since
                            THEN payment_status_since
                        WHEN is_other_word OR is_other_state OR payment_status_since IS NULL
                            THEN clock_timestamp()
                        ELSE payment_status_since
                    END,
                    -- An id that is new is none that an earlier attempt has left behind.
                    payment_session_stale = payment_session_stale
                        AND NEW.payment_session_id IS NOT DISTINCT FROM OLD.payment_session_id,
                    payment_intent_stale = payment_intent_stale
                        AND NEW.payment_intent_id IS NOT DISTINCT FROM OLD.payment_intent_id
                WHERE id = NEW.id;
                PERFORM set_config('listings.completing', coalesce(completing, ''), true);
            END IF;
            RETURN NULL;
        END
        $$
    """


def _if_changed(column: str) -> str:
    return f"CASE WHEN NEW.{column} IS DISTINCT FROM OLD.{column} THEN NEW.{column} END"


def _check_by_hand() -> str:
    return "\n".join(
        f"""
        IF NOT ({condition}) THEN
            RAISE check_violation USING
                message = 'the new row of orders violates {name}: {condition}',
                schema = TG_TABLE_SCHEMA, table = TG_TABLE_NAME, constraint = '{name}';
        END IF;"""
        for name, condition in _VALID.items()
    )


def _insert(schema: str, values: dict[str, str]) -> str:
    columns, terms = ", ".join(values), ", ".join(values.values())
    return f"INSERT INTO {schema}.order_payment_events ({columns}) VALUES ({terms})"


def _is_other_request(schema: str) -> str:
    """Return the function of whether a key was used for other requests of the order alone.

    VOLATILE, as functions are by default, gives each call a snapshot of its own: after a wait for
    the lock of the row, it sees the event that the other transaction has committed.
    """
    return f"""
        CREATE OR REPLACE FUNCTION is_other_payment_request(
            order_id bigint, key varchar, digest text
        ) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            RETURN EXISTS (
                SELECT FROM {schema}.order_payment_events AS event
                WHERE event.idempotency_key = key
                    AND event.order_id = is_other_payment_request.order_id
                    AND event.request_digest <> digest::uuid
            ) AND NOT EXISTS (
                SELECT FROM {schema}.order_payment_events AS event
                WHERE event.further_idempotency_key = key
                    AND event.request_digest = digest::uuid
            );
        END
        $$
    """


# Before the row is written, so that it is written once. With a second UPDATE instead, an INSERT
# with a payment takes twice as long. COPY then inserts row by row, also orders without a payment,
# which takes 10 us for each. As in the orders that there are, the time is updated_at.
_BEGIN = """
    CREATE OR REPLACE FUNCTION begin_payment() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.payment_version := pg_catalog.pg_current_xact_id();
        NEW.payment_status_since := NEW.updated_at;
        RETURN NEW;
    END
    $$
"""

_TRIGGERS = f"""
    CREATE OR REPLACE TRIGGER payment_begins BEFORE INSERT ON orders
    FOR EACH ROW WHEN (NEW.payment_status_since IS NULL AND {_has_payment("NEW")})
    EXECUTE FUNCTION begin_payment();

    CREATE OR REPLACE TRIGGER payment_inserted AFTER INSERT ON orders
    FOR EACH ROW WHEN ({_has_payment("NEW")})
    EXECUTE FUNCTION record_payment_change();

    CREATE OR REPLACE TRIGGER payment_updated AFTER UPDATE ON orders
    FOR EACH ROW EXECUTE FUNCTION record_payment_change();
"""
_NO_TRIGGERS = """
    DROP TRIGGER IF EXISTS payment_begins ON orders;
    DROP TRIGGER IF EXISTS payment_inserted ON orders;
    DROP TRIGGER IF EXISTS payment_updated ON orders;
"""
_TRIGGERS_BEFORE = f"""
    CREATE OR REPLACE TRIGGER order_payment_inserted AFTER INSERT ON orders
    FOR EACH ROW WHEN ({_has_payment("NEW")})
    EXECUTE FUNCTION record_order_payment_event();

    CREATE OR REPLACE TRIGGER order_payment_updated AFTER UPDATE ON orders
    FOR EACH ROW WHEN ({_differ(_FIELDS)})
    EXECUTE FUNCTION record_order_payment_event();
"""
_NO_TRIGGERS_BEFORE = """
    DROP TRIGGER IF EXISTS order_payment_inserted ON orders;
    DROP TRIGGER IF EXISTS order_payment_updated ON orders;
"""

_GRANT = f"""
    GRANT UPDATE ({", ".join(_NEW_ORDER_COLUMNS)}) ON orders TO listings_app;
    GRANT EXECUTE ON FUNCTION is_other_payment_request TO listings_app;
    REVOKE EXECUTE ON FUNCTION begin_payment(), record_payment_change() FROM public;
"""

_UNCLASSIFIED = f"orders.payment_state IS NULL AND {_has_payment('orders')}"
_NEXT = f"""
    SELECT id FROM orders WHERE orders.id > %s AND {_UNCLASSIFIED}
    ORDER BY id LIMIT {_BATCH * _PASSES}
"""
# In the order in which the service locks them, so that there is no deadlock.
_LOCK = f"""
    SELECT id FROM orders WHERE orders.id = ANY (%s) AND {_UNCLASSIFIED}
    ORDER BY id FOR NO KEY UPDATE
"""
_CLASSIFY = f"""
    UPDATE orders SET
        payment_status_since = coalesce(orders.payment_status_since, orders.updated_at),
        payment_state = coalesce(
            (SELECT state FROM status_words WHERE word = {_NORMALIZED}), {_UNKNOWN}
        )
    WHERE orders.id = ANY (%s)
"""


def add(connection: Connection) -> None:
    """Add columns and triggers, then classify the payments that have begun."""
    set_lock_timeout(connection)
    change_table(connection, "orders", _COLUMNS)
    columns = ", ".join(
        f"ADD COLUMN IF NOT EXISTS {name} {type_}" for name, type_ in _EVENT_COLUMNS.items()
    )
    change_table(connection, "order_payment_events", f"ALTER TABLE order_payment_events {columns}")
    create_indexes(connection, _INDEXES)
    set_lock_timeout(connection)
    # At once, so that each change is recorded by one of the two functions.
    schema = _schema(connection)
    change_table(
        connection,
        "orders",
        _BEGIN + ";" + _record(schema) + ";" + _is_other_request(schema),
        _TRIGGERS + _NO_TRIGGERS_BEFORE + _GRANT,
    )
    _classify(connection)
    # PostgreSQL knows nothing of the values of a new column. Where autovacuum is at the table, it
    # sees to that itself.
    connection.execute("ANALYZE (SKIP_LOCKED) orders")


def _schema(connection: Connection) -> str:
    row = connection.execute("SELECT quote_ident(current_schema())").fetchone()
    assert row is not None  # noqa: S101 - it has no WHERE
    return str(row[0])


def _classify(connection: Connection) -> None:
    """Set the state of each order whose payment has begun, and since when it has it."""

    def following(last: int) -> list[int]:
        return [row[0] for row in connection.execute(_NEXT, (last,))]

    def classify(batch: list[int]) -> None:
        locked = [row[0] for row in connection.execute(_LOCK, (batch,))]
        connection.execute(_CLASSIFY, (locked,))

    ids = [0]
    while ids:
        ids = change_rows(connection, partial(following, ids[-1]))
        # Not the orders of a page at once, for which it would have no room: then each would move to
        # another page, with a new entry in each index. Those of one pass leave room for the next.
        for batch in (ids[first::_PASSES] for first in range(min(_PASSES, len(ids)))):
            change_rows(connection, partial(classify, batch))


def remove(connection: Connection) -> None:
    """Have the triggers of the version before again, and drop the columns with their data.

    The words stay, and what happened stays in the history. Lost are the states, the times and
    amounts that requests had, the reasons of overrides, what an open dispute returns to, and what
    distinguishes the requests with one key. So a repetition of a later step under a key may then
    be an error, IDEMPOTENCY_KEY_REUSED; no key can be used for another order.
    """
    set_lock_timeout(connection)
    dropped = ", ".join(f"DROP COLUMN IF EXISTS {name}" for name in _NEW_ORDER_COLUMNS)
    change_table(
        connection,
        "orders",
        _TRIGGERS_BEFORE + _NO_TRIGGERS,
        "DROP FUNCTION IF EXISTS begin_payment, record_payment_change, is_other_payment_request",
        f"ALTER TABLE orders {dropped}",
    )
    dropped = ", ".join(f"DROP COLUMN IF EXISTS {name}" for name in _EVENT_COLUMNS)
    change_table(connection, "order_payment_events", f"ALTER TABLE order_payment_events {dropped}")


step(add, remove)
