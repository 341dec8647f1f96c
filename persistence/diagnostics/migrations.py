"""Migrations that are missing."""

from collections.abc import Iterable

from persistence.diagnostics.connection import Connection
from persistence.diagnostics.fault import Fault
from persistence.schema import applied_migrations, migration_ids


async def check_migrations(connection: Connection) -> str:
    """Return which migrations there are. Raises Fault when some are missing."""
    known, applied = migration_ids(), await applied_migrations(connection.fetch)
    if missing := [name for name in known if name not in applied]:
        raise Fault(f"lacks {', '.join(missing)}", "Run `listings migrate up`")
    if newer := _newer(applied):
        return f"complete; {', '.join(newer)} of a newer version, beside which this one can run"
    return f"complete, up to {known[-1]}"


async def newer_migrations(connection: Connection) -> list[str]:
    """Return the ids of the migrations of a newer version that have been applied."""
    return _newer(await applied_migrations(connection.fetch))


def _newer(applied: Iterable[str]) -> list[str]:
    """Return those that come after all of this version, in their order.

    Others that are not known are no migrations of the service: a shop may use yoyo as well.
    """
    return sorted(name for name in applied if name > migration_ids()[-1])
