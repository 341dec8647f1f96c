"""Which migrations exist, and which of them a database has."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from persistence.database import Database
from persistence.errors import SchemaOutdated

_HERE = Path(__file__).resolve().parent


def migrations_directory() -> Path:
    """Return the directory of the migrations: ``yoyo/``, or one in this package once installed."""
    checkout = _HERE.parent / "yoyo"
    # Once installed, the directory of that name beside this package is the yoyo library itself.
    return checkout if not (checkout / "__init__.py").exists() else _HERE / "migrations"


def migration_ids() -> list[str]:
    """Return the ids of all migrations, oldest first."""
    files = migrations_directory().glob("[0-9]*")
    return sorted(
        file.stem for file in files if file.suffix in {".py", ".sql"} and "." not in file.stem
    )


async def applied_migrations(
    fetch: Callable[[str], Awaitable[Sequence[Sequence[Any]]]],
) -> dict[str, datetime]:
    """Return the ids of the applied migrations, each with its time (naive, in UTC). Reads only.

    ``fetch`` runs a statement and returns its rows. Raises what it raises.
    """
    # yoyo creates its table with the first migration.
    ((exists,),) = await fetch("SELECT to_regclass('_yoyo_migration') IS NOT NULL")
    if not exists:
        return {}
    rows = await fetch("SELECT migration_id, applied_at_utc FROM _yoyo_migration")
    return {row[0]: row[1] for row in rows}


async def require_current(database: Database) -> None:
    """Check that every migration has been applied. Later ones, of a newer version, are fine.

    Raises SchemaOutdated, or another PersistenceError.
    """
    applied = await applied_migrations(database.fetch)
    if missing := [name for name in migration_ids() if name not in applied]:
        raise SchemaOutdated(missing)
