"""What the operator's commands have in common: a session of the tables' owner, and its errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import asyncpg

from persistence import timestamps
from persistence.dsn import asyncpg_dsn
from persistence.errors import MaintenanceError

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@asynccontextmanager
async def owner_session(url: str) -> AsyncIterator[Connection]:
    """Yield a connection to ``url``, a libpq URL that leads past a pooler.

    Raises MaintenanceError for what PostgreSQL reports meanwhile, or InvalidDatabaseURL.
    """
    dsn = asyncpg_dsn(url)
    try:
        connection = await asyncpg.connect(dsn=dsn)
        try:
            await timestamps.set_codec(connection)
            yield connection
        finally:
            await connection.close()
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise MaintenanceError(f"{error}; run `listings migrate up` first") from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise MaintenanceError(
            f"{error}. Only the owner of the tables may: let LISTINGS_MIGRATION_DATABASE_URL name "
            "it"
        ) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise MaintenanceError(f"the database has failed: {error}") from error
