"""Epochs of the history, and whether its transaction ids and sequences can be trusted.

Those who follow the history go by transaction ids. A database that was restored from a dump, or is
a logical replica, has ids of the cluster that it came from. Those that this cluster has not
assigned yet are ids of the future: once it does, old events would be sent as new. And a logical
replica has its sequences still at their beginning. Both end with a new epoch: see ``new_history``.

Ids of the future in rows of an earlier epoch do no harm, as long as this cluster has opened the
present one: those who follow the history pass over such rows.
"""

from datetime import datetime
from typing import Final, NamedTuple

from persistence.diagnostics.connection import Fetches
from persistence.diagnostics.fault import Fault

REMEDY: Final = "Run `listings new-history`"

_NEWEST: Final = 1_000
"""Rows of a table that are looked at, those with the highest transaction ids."""


class Epoch(NamedTuple):
    """The newest row of ``payment_history_epochs``."""

    id: int
    opened_at: datetime
    last_event_id: int
    last_refused_event_id: int
    is_of_this_cluster: bool
    is_of_the_future: bool
    """Whether it begins with a transaction that this cluster has not come to."""

    @property
    def exempt_event_id(self) -> int:
        """Up to which id events may have transaction ids of the future."""
        return self.last_event_id if self.is_of_this_cluster else 0

    @property
    def exempt_refused_event_id(self) -> int:
        """Up to which id refused events may."""
        return self.last_refused_event_id if self.is_of_this_cluster else 0


class EventTable(NamedTuple):
    """How far the rows of a table of events have come, by those of the highest transaction ids."""

    name: str
    sequence: str
    """That of its ids, as PostgreSQL quotes it."""
    sequence_at: int
    """The last id that the sequence has given; 0 if none."""
    last_id: int
    last_transaction_id: int
    next_transaction_id: int
    """Of this cluster: ids from here on are of the future."""
    has_future_ids: bool
    """Whether rows that are not of an earlier epoch have such ids, or those in progress here."""

    @property
    def is_sequence_behind(self) -> bool:
        """Whether the sequence would give ids that rows have."""
        return self.sequence_at < self.last_id


_EPOCH: Final = """
    SELECT id, opened_at, last_event_id, last_refused_event_id,
        system_identifier = (pg_control_system()).system_identifier,
        first_transaction_id > pg_snapshot_xmax(pg_current_snapshot())
    FROM payment_history_epochs ORDER BY id DESC LIMIT 1
"""

# Rows of the future with the highest ids of all are those of the cluster that the database came
# from last, or that it is still replicated from. So it is enough to look at these, by the index of
# transaction ids: after a restore, millions of rows of earlier epochs may have ids of the future.
# Where another cluster has opened the present epoch, its rows may be between those: then any will
# do. A row that is visible has a transaction that is, or one of another cluster: of the future, or
# in progress here, wherever those are among the others.
_TABLE: Final = """
    SELECT
        pg_get_serial_sequence('{table}', 'id'),
        coalesce(pg_sequence_last_value(pg_get_serial_sequence('{table}', 'id')::regclass), 0),
        greatest(max(id), $1::bigint),
        coalesce(max(transaction_id::text::bigint), 0),
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
        coalesce(bool_or(
            NOT pg_visible_in_snapshot(transaction_id, pg_current_snapshot())
            AND (id > $1::bigint OR NOT $2::boolean)
        ), false)
    FROM (
        (SELECT id, transaction_id FROM {table} ORDER BY transaction_id DESC LIMIT {limit})
        UNION ALL
        SELECT id, transaction_id FROM {table}
        WHERE transaction_id = ANY (ARRAY(SELECT pg_snapshot_xip(pg_current_snapshot())))
    ) looked_at
"""


async def current_epoch(database: Fetches) -> Epoch:
    """Return the present epoch. Raises Fault if there is none, or what ``database`` raises."""
    rows = await database.fetch(_EPOCH)
    if not rows:
        raise Fault("payment_history_epochs has no row", REMEDY)
    return Epoch(*rows[0])


async def event_tables(database: Fetches, epoch: Epoch) -> list[EventTable]:
    """Return the state of the tables of events and of refused events. It takes milliseconds.

    Raises what ``database`` raises.
    """
    found = []
    for table, last_id in (
        ("order_payment_events", epoch.last_event_id),
        ("refused_payment_events", epoch.last_refused_event_id),
    ):
        statement = _TABLE.format(table=table, limit=_NEWEST)
        (row,) = await database.fetch(statement, last_id, epoch.is_of_this_cluster)
        found.append(EventTable(table, *row))
    return found


async def check_history(database: Fetches) -> str:
    """Return which epoch it is. Raises Fault when the history needs a new one."""
    epoch = await current_epoch(database)
    tables = await event_tables(database, epoch)
    faults = [text for table in tables for text in _faults(table)]
    if epoch.is_of_the_future and not faults:
        faults = [f"epoch {epoch.id} begins with a transaction that this cluster has not come to"]
    if faults:
        raise Fault("; ".join(faults), REMEDY)
    since = epoch.opened_at
    return f"epoch {epoch.id}, since {since:%Y-%m-%d}; transaction ids and sequences are sound"


def _faults(table: EventTable) -> list[str]:
    faults = []
    if table.has_future_ids:
        faults.append(
            f"{table.name} has transaction ids of another cluster, up to "
            f"{table.last_transaction_id}, and this one is at {table.next_transaction_id}: once it "
            "comes to them, old events would be sent as new"
        )
    if table.is_sequence_behind:
        faults.append(
            f"the sequence {table.sequence} is at {table.sequence_at}, and {table.name} has ids up "
            f"to {table.last_id}: new events would get ids of old ones"
        )
    return faults
