"""Applying and rolling back the migrations, with yoyo."""

import getpass
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

import psycopg
from psycopg.conninfo import make_conninfo
from yoyo import get_backend, read_migrations
from yoyo.backends import DatabaseBackend
from yoyo.exceptions import BadMigration
from yoyo.migrations import MigrationList

from persistence.dsn import parameters
from persistence.errors import MigrationError
from persistence.schema import migration_ids, migrations_directory

_ADVISORY_LOCK = 0x6C697374696E6773  # "listings" in ASCII, as one 64-bit key
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Status:
    """One migration, and when it was applied (in UTC), if it was."""

    id: str
    applied_at: datetime | None


def status(url: str) -> list[Status]:
    """Return every migration there is, oldest first. Reads only."""
    applied: dict[str, datetime] = {}
    with _reported(), _connect(url) as connection:
        found = connection.execute("SELECT to_regclass('_yoyo_migration')").fetchone()
        if found and found[0]:
            rows = connection.execute("SELECT migration_id, applied_at_utc FROM _yoyo_migration")
            applied = dict(rows.fetchall())
    return [Status(name, applied.get(name)) for name in migration_ids()]


def up(url: str) -> list[str]:
    """Apply the migrations that are missing, oldest first, and return their ids.

    Safe to call from several processes at once, and again after a run that was killed.
    Raises MigrationError.
    """
    if all(migration.applied_at for migration in status(url)):
        return []  # without a lock, and without what yoyo does first: it makes and drops a table
    with _reported(), _only_one(url), _backend(url) as backend:
        pending = backend.to_apply(_migrations())
        with backend.lock():
            backend.apply_migrations(pending)
        return [migration.id for migration in pending]


def down(url: str, version: str) -> list[str]:
    """Roll back what was applied after ``version``, newest first, and return the ids.

    ``version`` is the id of a migration or the number that it begins with; it stays applied.
    ``"0"`` rolls back everything. What the migrations added is lost, with the data in it.
    Raises MigrationError.
    """
    keep = up_to(version)
    with _reported(), _only_one(url), _backend(url) as backend:
        applied = backend.to_rollback(_migrations())
        undo = MigrationList([m for m in applied if m.id not in keep], [])
        with backend.lock():
            backend.rollback_migrations(undo)
        return [migration.id for migration in undo]


def up_to(version: str) -> list[str]:
    """Return the ids of the migrations that stay applied after ``down(url, version)``.

    Raises MigrationError for a version that there is not.
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


@contextmanager
def _backend(url: str) -> Iterator[DatabaseBackend]:
    """Connect yoyo to ``url``. Call it under ``_only_one``."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a numeric user without a name, as in a container
        os.environ["LOGNAME"] = str(os.getuid())  # yoyo logs who migrates
    # As parameters, because yoyo's own reading of a URL knows one host only.
    backend = get_backend(f"postgresql+psycopg:///?{urlencode(parameters(url))}")
    with backend:
        # A run that was killed leaves its row in yoyo's lock table. It cannot be a live one: that
        # one would hold the advisory lock.
        backend.break_lock()
        yield backend


@contextmanager
def _only_one(url: str) -> Iterator[None]:
    """Hold an advisory lock, which PostgreSQL releases when its holder dies."""
    with _connect(url) as connection:
        # Asked for again and again rather than waited for: a waiting statement is an old
        # transaction, for which the holder's CREATE INDEX CONCURRENTLY would wait in turn.
        while not _try_lock(connection):
            time.sleep(_POLL_SECONDS)
        yield


def _connect(url: str) -> psycopg.Connection:
    return psycopg.connect(make_conninfo(**parameters(url)), autocommit=True)


def _try_lock(connection: psycopg.Connection) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", (_ADVISORY_LOCK,)).fetchone()
    return row is not None and bool(row[0])


@contextmanager
def _reported() -> Iterator[None]:
    """Turn the libraries' errors into MigrationError."""
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
    except (psycopg.Error, BadMigration) as error:
        raise MigrationError(str(error).strip()) from error
