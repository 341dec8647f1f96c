"""The epochs of the history: up to which row its transaction ids may be those of another cluster.

A dump, and a logical replica, have the transaction ids of the cluster that they came from. A
younger cluster assigns the same ids again, so that they no longer tell what was committed since
when. `listings new-history` opens an epoch then: rows with ids up to ``last_event_id`` and
``last_refused_event_id`` are history, and never news to those who follow it. Later rows have
transaction ids from ``first_transaction_id`` on, so that no old one has to be read to find them.

The newest row is the epoch of the present. Positions in the history carry its ``identity``, and
``system_identifier`` tells which cluster opened it: the one that initdb gave it, which its standbys
and base backups share.

The service may read how far the sequences of the events have come: those of a logical replica stay
behind the rows.
"""

from psycopg import Connection
from yoyo import step

from persistence.migration_support import set_lock_timeout

__depends__ = {"20261130000005_index_replaced_references"}
__transactional__ = False

_TABLE = """
    CREATE TABLE IF NOT EXISTS payment_history_epochs (
        id                    BIGINT      GENERATED ALWAYS AS IDENTITY,
        last_event_id         BIGINT      NOT NULL,
        last_refused_event_id BIGINT      NOT NULL,
        system_identifier     BIGINT      NOT NULL
            DEFAULT (pg_control_system()).system_identifier,
        opened_at             TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
        first_transaction_id  XID8        NOT NULL
            DEFAULT pg_snapshot_xmin(pg_current_snapshot()),
        identity              UUID        NOT NULL DEFAULT gen_random_uuid(),
        database_role         NAME        NOT NULL DEFAULT session_user,
        reason                TEXT,

        CONSTRAINT payment_history_epochs_pkey PRIMARY KEY (id),
        CONSTRAINT payment_history_epochs_ids_not_negative CHECK (
            least(last_event_id, last_refused_event_id) >= 0
        )
    )
"""

# All events that there are belong to it. What is wrong with their ids is found by `serve`.
_FIRST = """
    INSERT INTO payment_history_epochs (last_event_id, last_refused_event_id, first_transaction_id)
    SELECT 0, 0, '0' WHERE NOT EXISTS (SELECT FROM payment_history_epochs)
"""

# Also for the owner of the table and for superusers, whom privileges do not restrict.
_APPEND_ONLY = """
    CREATE OR REPLACE FUNCTION refuse_change_of_payment_history_epochs() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        RAISE insufficient_privilege USING
            message = 'payment_history_epochs can be added to, and not changed or deleted';
    END
    $$;

    CREATE OR REPLACE TRIGGER payment_history_epochs_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON payment_history_epochs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_payment_history_epochs();
"""

_GRANT = """
    GRANT SELECT ON payment_history_epochs TO listings_app;
    GRANT SELECT ON order_payment_events_id_seq, refused_payment_events_id_seq TO listings_app;
"""
_REVOKE = """
    REVOKE SELECT ON order_payment_events_id_seq, refused_payment_events_id_seq FROM listings_app;
"""


def create(connection: Connection) -> None:
    """Create the table with the first epoch, in one transaction. It locks nothing in use."""
    set_lock_timeout(connection)
    with connection.transaction():
        connection.execute(_TABLE)
        connection.execute(_FIRST)
        connection.execute(_APPEND_ONLY)
        connection.execute(_GRANT)


def drop(connection: Connection) -> None:
    """Drop the table with its data, and revoke what it was granted with."""
    set_lock_timeout(connection)
    with connection.transaction():
        connection.execute(_REVOKE)
        connection.execute("DROP TABLE IF EXISTS payment_history_epochs")
        connection.execute("DROP FUNCTION IF EXISTS refuse_change_of_payment_history_epochs")


step(create, drop)
