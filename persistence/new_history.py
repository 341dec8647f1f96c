"""A new epoch of the history: `listings new-history`.

All events that there are become history, which is never news to those who follow it, and sequences
that are behind their rows are set. It is for a database that was restored from a dump or was a
logical replica: see ``history_epochs``.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import asyncpg

from persistence.diagnostics import Fault
from persistence.diagnostics.epochs import check_history, current_epoch
from persistence.errors import MaintenanceError
from persistence.maintenance import Connection, owner_session

_LOCK_TIMEOUT: Final = "5s"
"""As for migrations: while it waits for a table, updates wait behind it."""

# In the order in which an update locks the first two.
_TABLES: Final = ("orders", "order_payment_events", "refused_payment_events")

_EPOCHS: Final = "payment_history_epochs"

# A subscription whose worker does not run would go on once its publisher can be reached.
_SUBSCRIPTIONS: Final = """
    SELECT DISTINCT subname FROM pg_subscription_rel
    JOIN pg_stat_subscription ON subid = srsubid
    JOIN pg_subscription USING (subname)
    WHERE subenabled AND srrelid IN (SELECT to_regclass(name) FROM unnest($1::text[]) name)
    AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY subname
"""

_SEQUENCE: Final = """
    SELECT sequence, coalesce(pg_sequence_last_value(sequence::regclass), 0), (
        SELECT coalesce(max(id), 0) FROM {table}
    )
    FROM pg_get_serial_sequence('{table}', 'id') sequence
"""


_OPEN: Final = """
    INSERT INTO payment_history_epochs (last_event_id, last_refused_event_id, reason)
    VALUES ($1, $2, $3) RETURNING id
"""


class Moved(NamedTuple):
    """A sequence that was behind its rows."""

    sequence: str
    before: int
    """The last id that it had given; 0 if none."""
    now: int


class Opened(NamedTuple):
    """What was done."""

    epoch: int
    last_event_id: int
    last_refused_event_id: int
    moved: Sequence[Moved]


async def reason_for_epoch(url: str) -> str | None:
    """Return why the history needs a new epoch, None if it needs none.

    ``url`` is a libpq URL. Raises MaintenanceError or InvalidDatabaseURL.
    """
    async with owner_session(url) as connection:
        try:
            await check_history(connection)
        except Fault as fault:
            return fault.problem
        epoch = await current_epoch(connection)
    # Sound at the moment: its rows may have ids that this cluster has assigned to others.
    return None if epoch.is_of_this_cluster else f"epoch {epoch.id} is of another cluster"


async def open_epoch(url: str, reason: str | None = None) -> Opened:
    """Open an epoch, for ``reason``, and set the sequences that are behind their rows.

    No payment is written meanwhile: updates wait. ``url`` is a libpq URL of the owner. Raises
    MaintenanceError or InvalidDatabaseURL; then no epoch was opened.
    """
    async with owner_session(url) as connection, _alone(connection):
        last_ids, moved = {}, []
        for table in (*_TABLES, _EPOCHS):
            last_ids[table], behind = await _set_sequence(connection, table)
            moved += behind
        events, refused = (last_ids[table] for table in _TABLES[1:])
        epoch = await connection.fetchval(_OPEN, events, refused, reason)
        return Opened(epoch, events, refused, moved)


@asynccontextmanager
async def _alone(connection: Connection) -> AsyncIterator[None]:
    """Have a transaction in which others neither write events nor open an epoch.

    Raises MaintenanceError if others hold the tables, or will go on to write them.
    """
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        try:
            for table in (*_TABLES, _EPOCHS):
                await connection.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
        except asyncpg.LockNotAvailableError as error:
            raise MaintenanceError(
                f"other transactions held a lock on the tables for more than {_LOCK_TIMEOUT}: "
                "stop the service, and end them; then run this again"
            ) from error
        if subscriptions := await connection.fetch(_SUBSCRIPTIONS, list(_TABLES)):
            names = ", ".join(name for (name,) in subscriptions)
            raise MaintenanceError(
                f"the tables are replicated by the subscription {names}: once it has brought all "
                "that is to come, drop it by DROP SUBSCRIPTION; then run this again"
            )
        yield


async def _set_sequence(connection: Connection, table: str) -> tuple[int, list[Moved]]:
    """Set the sequence of the table's ids if it is behind its rows, and return the highest id.

    ``orders`` has no sequence of its own where the shop gives the ids by another way.
    """
    (row,) = await connection.fetch(_SEQUENCE.format(table=table))
    sequence, before, last_id = row
    if sequence is None or before >= last_id:
        return last_id, []
    await connection.execute("SELECT setval($1::text::regclass, $2)", sequence, last_id)
    return last_id, [Moved(sequence, before, last_id)]
