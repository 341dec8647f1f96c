"""Which rows of the history belong to earlier epochs, before it was restored or moved."""

from typing import Any, Final, NamedTuple, Protocol

_HAS_EPOCHS: Final = "SELECT to_regclass('payment_history_epochs') IS NOT NULL"
# An epoch that was opened in another cluster excuses nothing in this one.
_EPOCH: Final = """
    SELECT last_event_id, last_refused_event_id FROM payment_history_epochs
    WHERE id = (SELECT max(id) FROM payment_history_epochs)
        AND system_identifier = (pg_control_system()).system_identifier
"""


class EarlierEpochs(NamedTuple):
    """Up to which ids rows are of earlier epochs. Their transactions may be of another cluster."""

    last_event_id: int = 0
    last_refused_event_id: int = 0


class Fetches(Protocol):
    """A connection of asyncpg, or the pool."""

    async def fetchrow(self, sql: str, /, *args: Any) -> Any:
        """Run a statement and return its first row, or None."""
        ...


async def earlier_epochs(database: Fetches) -> EarlierEpochs:
    """Return how far earlier epochs go; nowhere where there is no table of them.

    Raises what ``database`` raises.
    """
    (has_epochs,) = await database.fetchrow(_HAS_EPOCHS)
    row = await database.fetchrow(_EPOCH) if has_epochs else None
    return EarlierEpochs() if row is None else EarlierEpochs(*row)
