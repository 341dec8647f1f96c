"""The events that the service has refused: money may have come that no order shows.

Equal events are one row, which counts: a digest of what distinguishes them is unique. A row keeps
the request that was refused first, and the order's payment as it stood then. Only ``times`` and
``last_refused_at`` change. Rows are deleted by ``listings refused purge`` alone, which sets
listings.purge for its transaction.

No foreign key to the order: the record outlives it, and a key that was used for another order is on
record also where there is no such order. transaction_id is for readers who follow the table, as in
order_payment_events.
"""

from psycopg import Connection
from yoyo import step

from persistence.migration_support import set_lock_timeout

__depends__ = {"20261130000002_add_payment_states"}
__transactional__ = False

_TABLE = """
    CREATE TABLE IF NOT EXISTS refused_payment_events (
        id                            BIGINT       GENERATED ALWAYS AS IDENTITY,
        order_id                      BIGINT       NOT NULL,
        storefront_id                 BIGINT,
        times                         BIGINT       NOT NULL DEFAULT 1,
        transaction_id                XID8         NOT NULL DEFAULT pg_current_xact_id(),
        first_refused_at              TIMESTAMPTZ  NOT NULL DEFAULT clock_timestamp(),
        last_refused_at               TIMESTAMPTZ  NOT NULL DEFAULT clock_timestamp(),
        payment_event_time            TIMESTAMPTZ,
        captured_amount               BIGINT,
        refunded_amount               BIGINT,
        order_payment_event_time      TIMESTAMPTZ,
        digest                        UUID         NOT NULL,
        requested_state               SMALLINT,
        order_payment_state           SMALLINT,
        written                       BOOLEAN      NOT NULL,
        tells_of_money                BOOLEAN      NOT NULL,
        reason                        TEXT         NOT NULL,
        currency                      VARCHAR(3),
        payment_provider              VARCHAR(50),
        payment_session_id            VARCHAR(255),
        payment_intent_id             VARCHAR(255),
        payment_idempotency_key       VARCHAR(255),
        payment_status                VARCHAR(50),
        payment_transaction_id        VARCHAR(255),
        order_payment_provider        VARCHAR(50),
        order_payment_session_id      VARCHAR(255),
        order_payment_intent_id       VARCHAR(255),
        order_payment_idempotency_key VARCHAR(255),
        order_payment_status          VARCHAR(50),
        order_payment_transaction_id  VARCHAR(255),
        override_reason               VARCHAR(500),
        request_id                    TEXT         NOT NULL,
        caller                        TEXT,

        CONSTRAINT refused_payment_events_pkey PRIMARY KEY (id),
        CONSTRAINT refused_payment_events_digest_key UNIQUE (digest),
        CONSTRAINT refused_payment_events_times_positive CHECK (times > 0)
    )
"""

# Providers are compared in any spelling. Up to PostgreSQL 15 at least, E'\\v' is the letter.
_PROVIDER = (
    r"translate(payment_provider, E'ABCDEFGHIJKLMNOPQRSTUVWXYZ-_ \t\n\r\f\x0b',"
    " 'abcdefghijklmnopqrstuvwxyz')"
)

_AGE = "first_refused_at, id"
_INDEXES = {
    "idx_refused_payment_events_first": f"INDEX {{}} ON refused_payment_events ({_AGE})",
    "idx_refused_payment_events_order": f"INDEX {{}} ON refused_payment_events (order_id, {_AGE})",
    "idx_refused_payment_events_storefront": (
        f"INDEX {{}} ON refused_payment_events (storefront_id, {_AGE})"
    ),
    "idx_refused_payment_events_transaction": "INDEX {} ON refused_payment_events (transaction_id)",
} | {
    f"idx_refused_payment_events_{name}": f"INDEX {{}} ON refused_payment_events ({column}, {_AGE})"
    for name, column in {
        "reason": "reason",
        "payment_provider": _PROVIDER,
        "payment_session_id": "payment_session_id",
        "payment_intent_id": "payment_intent_id",
        "payment_idempotency_key": "payment_idempotency_key",
        "payment_transaction_id": "payment_transaction_id",
    }.items()
}

# Also for the owner of the table and for superusers, whom privileges do not restrict.
_APPEND_ONLY = """
    CREATE OR REPLACE FUNCTION refuse_change_of_refused_payment_events() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF TG_OP = 'UPDATE' AND to_jsonb(OLD) - '{times,last_refused_at}'::text[]
            = to_jsonb(NEW) - '{times,last_refused_at}'::text[]
        THEN
            RETURN NEW;
        END IF;
        IF TG_OP = 'DELETE' AND current_setting('listings.purge', true) = 'on' THEN
            RETURN OLD;
        END IF;
        RAISE insufficient_privilege USING
            message = 'rows of refused_payment_events can be added and counted, nothing else';
    END
    $$;

    CREATE OR REPLACE TRIGGER refused_payment_events_append_only
    BEFORE UPDATE OR DELETE ON refused_payment_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_refused_payment_events();

    CREATE OR REPLACE TRIGGER refused_payment_events_not_truncated
    BEFORE TRUNCATE ON refused_payment_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_refused_payment_events();
"""

_GRANT = """
    GRANT SELECT, INSERT ON refused_payment_events TO listings_app;
    GRANT UPDATE (times, last_refused_at) ON refused_payment_events TO listings_app;
"""


def create(connection: Connection) -> None:
    """Create the table, its indexes and triggers.

    In one transaction, since the table is not in use yet. CONCURRENTLY, each index would wait for
    older transactions.
    """
    set_lock_timeout(connection)
    with connection.transaction():
        connection.execute(_TABLE)
        for name, definition in _INDEXES.items():
            connection.execute("CREATE " + definition.format(f"IF NOT EXISTS {name}"))
        connection.execute(_APPEND_ONLY + _GRANT)


def drop(connection: Connection) -> None:
    """Drop the table with its data."""
    set_lock_timeout(connection)
    with connection.transaction():
        connection.execute("DROP TABLE IF EXISTS refused_payment_events")
        connection.execute("DROP FUNCTION IF EXISTS refuse_change_of_refused_payment_events")


step(create, drop)
