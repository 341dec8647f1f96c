"""Which migrations there are, and whether a database has them."""

from pathlib import Path

from persistence.database import Database
from persistence.errors import SchemaOutdated

_HERE = Path(__file__).resolve().parent


def migrations_directory() -> Path:
    """Return the folder of the migrations: ``yoyo/``, or inside this package once installed."""
    checkout = _HERE.parent / "yoyo"
    # Once installed, the folder of that name beside this package is the yoyo library itself.
    return checkout if not (checkout / "__init__.py").exists() else _HERE / "migrations"


def migration_ids() -> list[str]:
    """Return the ids of all migrations, oldest first."""
    files = migrations_directory().glob("[0-9]*")
    return sorted(
        file.stem for file in files if file.suffix in {".py", ".sql"} and "." not in file.stem
    )


async def require_current(database: Database) -> None:
    """Check that every migration has been applied. Later ones than we know of are fine.

    Raises SchemaOutdated, or another PersistenceError.
    """
    row = await database.fetchrow("SELECT to_regclass('_yoyo_migration')")
    if row and row[0]:
        row = await database.fetchrow("SELECT array_agg(migration_id) FROM _yoyo_migration")
    applied = set((row and row[0]) or ())
    if missing := [name for name in migration_ids() if name not in applied]:
        raise SchemaOutdated(missing)
