"""The database that the settings name: its URLs, an embedded server, and checks at the start."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog

from persistence.roles import APPLICATION, OWNER
from server.settings import Settings

if TYPE_CHECKING:
    from persistence.database import Database
    from persistence.embedded import Keeper

# What one function alone needs is imported there: the drivers take half a second.

_DEMO_ORDERS: Final = 100


@contextmanager
def service_url(settings: Settings) -> Iterator[str]:
    """Yield the libpq URL by which the service connects.

    Without LISTINGS_DATABASE_URL it is that of an embedded server, which runs until the exit, for
    the application role. Raises EmbeddedPostgresError.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    from persistence import embedded

    with embedded.running(settings.data_dir, APPLICATION) as url:
        yield url


@contextmanager
def owner_url(settings: Settings) -> Iterator[str]:
    """Yield the libpq URL by which the same database is migrated and seeded.

    It is that of the owner, if one is set; otherwise the URL past a pooler, if one is set, since a
    migration needs a session to itself. An embedded server runs until the exit. Raises
    EmbeddedPostgresError.
    """
    given = settings.migration_database_url or settings.direct_database_url or settings.database_url
    if given is not None:
        yield given.get_secret_value()
        return
    from persistence import embedded

    with embedded.running(settings.data_dir, OWNER) as url:
        yield url


@contextmanager
def served_url(settings: Settings) -> Iterator[str]:
    """Yield ``service_url`` of a database that is ready to be served.

    An embedded database is migrated, and gets demo orders while it has no orders. One that
    LISTINGS_DATABASE_URL names is never migrated implicitly.

    Call it outside an event loop. Raises a PersistenceError when the database cannot be reached,
    or lacks rights or migrations, or when its history needs a new epoch.
    """
    with service_url(settings) as url:
        if settings.database_url is None:
            _prepare_embedded(settings)
        _log_database(settings, url)
        asyncio.run(_check(settings, url))
        yield url


def pool(settings: Settings, url: str, *, eager: bool) -> "Database":
    """Return the pool of connections to ``url``, not opened yet; see ``Database``."""
    from persistence.database import Database

    return Database(
        url,
        eager=eager,
        max_connections=settings.pool_size,
        connect_timeout=settings.connect_timeout,
        statement_timeout=settings.statement_timeout,
        prepared_statements=settings.prepared_statements,
    )


def keeper(settings: Settings) -> "Keeper | None":
    """Return what starts the embedded server again when it was killed; None if there is none."""
    if settings.database_url is not None:
        return None
    from persistence.embedded import Keeper

    return Keeper(settings.data_dir)


def _prepare_embedded(settings: Settings) -> None:
    from persistence import migrations, seeding

    with owner_url(settings) as url:
        migrations.up(url)
        asyncio.run(seeding.seed_if_empty(url, _DEMO_ORDERS))


def _log_database(settings: Settings, url: str) -> None:
    from persistence.dsn import shown

    embedded = settings.database_url is None
    place = f"embedded, in {settings.data_dir}" if embedded else shown(url)
    structlog.get_logger().info("using PostgreSQL", database=place)


async def _check(settings: Settings, url: str) -> None:
    """Raise a PersistenceError unless the database has what the service needs to keep its promises.

    Rights come first: without SELECT, the migrations cannot be read, and without these, the epochs.
    """
    from persistence import diagnostics
    from persistence.diagnostics import epochs, object_checks, pooling, rights
    from persistence.schema import require_current

    async with diagnostics.connected(url, timeout=settings.connect_timeout) as connection:
        await rights.require_rights(connection)
        if settings.prepared_statements:
            await pooling.check_prepared_statements(connection, url, are_used=True)
        async with pool(settings, url, eager=True) as database:
            await require_current(database)
        await object_checks.require_objects(connection)
        await epochs.check_history(connection)
