"""Migrations that are missing."""

from persistence.diagnostics.connection import Connection
from persistence.diagnostics.fault import Fault
from persistence.schema import applied_migrations, migration_ids


async def check_migrations(connection: Connection) -> str:
    """Return which migrations there are. Raises Fault when some are missing."""
    known, applied = migration_ids(), await applied_migrations(connection.fetch)
    if missing := [name for name in known if name not in applied]:
        raise Fault(f"lacks {', '.join(missing)}", "Run `listings migrate up`")
    if newer := sorted(applied.keys() - known):
        return f"complete; {', '.join(newer)} of a newer version, beside which this one can run"
    return f"complete, up to {known[-1]}"


async def has_newer(connection: Connection) -> bool:
    """Return whether a newer version has migrated the database."""
    applied = await applied_migrations(connection.fetch)
    return not applied.keys() <= {*migration_ids()}
