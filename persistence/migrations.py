"""Applying and rolling back the migrations, with yoyo."""

from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import psycopg
from yoyo import read_migrations
from yoyo.exceptions import BadMigration
from yoyo.migrations import MigrationList

from persistence.errors import MigrationError
from persistence.migration_support import MigrationAborted
from persistence.schema import applied_migrations, migration_ids, migrations_directory
from persistence.yoyo_backend import ListingsBackend, connect

_T = TypeVar("_T")


@dataclass(frozen=True)
class Status:
    """One migration, and the time (naive, in UTC) at which it was applied, if it was."""

    id: str
    applied_at: datetime | None


def status(url: str) -> list[Status]:
    """Return all migrations, oldest first, with their states in the database. Reads only.

    Raises MigrationError.
    """
    with _translated_errors(), connect(url) as connection:

        async def fetch(sql: str) -> Sequence[Sequence[Any]]:
            return connection.execute(sql.encode()).fetchall()

        applied = _without_event_loop(applied_migrations(fetch))
    return [Status(name, applied.get(name)) for name in migration_ids()]


def up(url: str) -> list[str]:
    """Apply the migrations that are missing, oldest first, and return their ids.

    Several processes may do so at once, and again after a run that was killed. Raises
    MigrationError.
    """
    if all(migration.applied_at for migration in status(url)):
        return []  # without the lock, and without the table that yoyo creates and drops first
    with _translated_errors(), ListingsBackend.open(url) as backend, backend.lock():
        pending = backend.to_apply(_migrations())
        backend.apply_migrations(pending)
        return [migration.id for migration in pending]


def down(url: str, version: str) -> list[str]:
    """Roll back what was applied after ``version``, newest first, and return the ids.

    ``version`` is as in ``up_to``. What the migrations added is dropped, with the data in it.
    Raises MigrationError.
    """
    keep = up_to(version)
    with _translated_errors(), ListingsBackend.open(url) as backend, backend.lock():
        applied = backend.to_rollback(_migrations())
        undo = MigrationList([m for m in applied if m.id not in keep], [])
        backend.rollback_migrations(undo)
        return [migration.id for migration in undo]


def up_to(version: str) -> list[str]:
    """Return the ids of the migrations up to and including ``version``, oldest first.

    ``version`` is the id of a migration or the number that it begins with, or ``"0"`` for none of
    them. Raises MigrationError when there is no such migration.
    """
    ids = migration_ids()
    if version == "0":
        return []
    for position, name in enumerate(ids, start=1):
        if version in (name, name.partition("_")[0]):
            return ids[:position]
    raise MigrationError(f"there is no migration {version}; give one of {', '.join(ids)}, or 0")


def _migrations() -> MigrationList:
    migrations: MigrationList = read_migrations(str(migrations_directory()))
    for migration in migrations:
        migration.load()  # yoyo itself skips one that cannot be loaded, without an error
    return migrations


def _without_event_loop(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that awaits nothing which suspends it, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    raise AssertionError("the coroutine waits for something")


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise the errors of psycopg, yoyo and the migrations as MigrationError."""
    try:
        yield
    except psycopg.errors.LockNotAvailable as error:
        raise MigrationError(
            "other transactions held a lock on the table for too long; nothing was lost, "
            "run it again when they have ended"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"{error}".strip() + ". Migrate as the owner of the tables: let "
            "LISTINGS_MIGRATION_DATABASE_URL name it"
        ) from error
    except (psycopg.Error, BadMigration, MigrationAborted) as error:
        raise MigrationError(str(error).strip()) from error
