"""Deletion of refused events that are old: ``listings refused purge``.

What counts is when an event was last refused. Those that may tell of money are deleted on request
only: those with a settled word, of a second payment, or of another currency. If a refused event is
the last of all events, it stays: without it, those who follow the history would find it changed.
"""

from datetime import datetime
from typing import Final, NamedTuple

from persistence import timestamps
from persistence.maintenance import Connection, owner_session
from persistence.position_queries import last_transaction

_BATCH: Final = 1_000
"""Rows in one transaction."""

_IS_NOT_LAST: Final = f"transaction_id IS DISTINCT FROM ({last_transaction()})"

# last_refused_at has no index. It is never before first_refused_at, which has one.
_COUNT: Final = f"""
    SELECT count(*) FILTER (WHERE NOT tells_of_money), count(*) FILTER (WHERE tells_of_money)
    FROM refused_payment_events
    WHERE first_refused_at < $1 AND last_refused_at < $1 AND {_IS_NOT_LAST}
"""  # noqa: S608 - all of it is a constant
_NEXT_PAGE: Final = """
    SELECT first_refused_at, id FROM refused_payment_events
    WHERE first_refused_at < $1 AND (first_refused_at, id) > ($2, $3)
    ORDER BY first_refused_at, id LIMIT $4
"""
# last_refused_at is checked again for a row that is counted once more at this moment.
_DELETE: Final = f"""
    DELETE FROM refused_payment_events WHERE id = ANY ($2::bigint[]) AND last_refused_at < $1
    AND ($3::boolean OR NOT tells_of_money) AND {_IS_NOT_LAST}
    RETURNING id
"""  # noqa: S608 - all of it is a constant


class OldEvents(NamedTuple):
    """How many events were last refused before a time."""

    others: int
    money: int
    """Those that may tell of money."""


async def count(url: str, before: datetime) -> OldEvents:
    """Return how many events ``purge`` would delete, for the aware time ``before``.

    ``url`` is a libpq URL. Raises MaintenanceError or InvalidDatabaseURL.
    """
    async with owner_session(url) as connection:
        row = await connection.fetchrow(_COUNT, before)
    assert row is not None  # noqa: S101 - it is an aggregate
    return OldEvents(*row)


async def purge(url: str, before: datetime, *, money: bool) -> int:
    """Delete these events, with ``money`` also those that may tell of it, and return how many.

    ``url`` is a libpq URL of the owner. Raises MaintenanceError or InvalidDatabaseURL; then a part
    of them may be deleted.
    """
    deleted = 0
    async with owner_session(url) as connection:
        last: tuple[object, ...] = (timestamps.time_at(timestamps.MINUS_INFINITY), 0)
        while page := await connection.fetch(_NEXT_PAGE, before, *last, _BATCH):
            deleted += await _delete(connection, before, [row["id"] for row in page], money=money)
            last = tuple(page[-1])
    return deleted


async def _delete(connection: Connection, before: datetime, ids: list[int], *, money: bool) -> int:
    async with connection.transaction():
        # The table's trigger refuses any other deletion.
        await connection.execute("SET LOCAL listings.purge = 'on'")
        return len(await connection.fetch(_DELETE, before, ids, money))
