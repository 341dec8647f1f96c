"""What the application stands on: opened before it serves, closed when it has stopped.

``run`` and ``server.asgi`` host the same application, which ``open_application`` yields to both.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from persistence.database import Database
from persistence.diagnostics import Fault
from persistence.diagnostics.epochs import check_history
from persistence.errors import PersistenceError
from persistence.history import PaymentHistory
from persistence.session_names import session_name
from persistence.status_words import StatusWords
from persistence.watch import ChangeFeed
from server.app import Application, create_app
from server.auth.jwks_client import JwksClient
from server.observability import telemetry
from server.process.database import keeper, pool
from server.rpc.health import Readiness
from server.settings import Settings

_CLOSE_SECONDS: Final = 2
"""For PostgreSQL's connections to close, when no call waits for an answer any more."""

RESPONSE_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
"""Headers of every response, which is for programs: not cached, not sniffed, not shown as a page.

https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html#security-headers
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """An application whose parts are open, and what its host calls."""

    application: Application
    every_second: Callable[[], object]
    """To be called about once a second, and once at the end."""
    stopping: Callable[[], object]
    """To be called when the host begins to stop: readiness turns false, and watch streams end."""


async def _require_history(database: Database) -> None:
    """Raise Fault when the history needs a new epoch.

    A worker may be replaced long after the checks of the parent process; also while it cannot ask.
    """
    try:
        await check_history(database)
    except Fault:
        raise
    except PersistenceError as error:
        _log.warning("the epoch of the history was not checked: %s", error)


@asynccontextmanager
async def open_application(
    settings: Settings,
    database_url: str,
    keys: JwksClient | None,
    words: StatusWords,
    *,
    processes: int,
) -> AsyncIterator[Opened]:
    """Open the pool, the watch feed, the keys, the readiness probe and telemetry until the exit.

    An embedded PostgreSQL that is killed meanwhile is started again.
    ``database_url`` is that of the service, ``words`` are what payment statuses mean, and
    ``processes`` is how many serve the database on this machine.
    Without ``keys``, callers need no token. The database need not be reachable: a process that is
    replaced while it is away serves once it is back. Raises InvalidDatabaseURL, SettingsError when
    telemetry cannot be set up, or Fault when the history needs a new epoch.
    """
    database = pool(settings, database_url, eager=False)
    readiness = Readiness(database_url, database)
    direct = settings.direct_database_url
    feed_url = direct.get_secret_value() if direct else database_url
    # Of a session through PgBouncer in transaction mode, the name would outlive the process.
    is_named = direct is not None or settings.prepared_statements
    feed = ChangeFeed(
        PaymentHistory(database, words),
        feed_url,
        connect_timeout=settings.connect_timeout,
        heartbeat=settings.watch_heartbeat,
        name=session_name(feed_url, words.digest) if is_named else None,
    )
    if keys is not None:
        readiness.faults.append(lambda: keys.fault)
        keys.changed = readiness.notify

    def every_second() -> None:
        application.every_second()
        if keys is not None:
            keys.poll()

    def stopping() -> None:
        readiness.stop()
        feed.end()

    async with telemetry.sending() as sender:
        application = create_app(
            settings,
            database,
            feed,
            readiness,
            words=words,
            processes=processes,
            keys=keys,
            telemetry=sender,
        )
        parts = AsyncExitStack()
        try:
            for part in (keeper(settings), keys, database, readiness.database, feed):
                if part is not None:
                    await parts.enter_async_context(part)
            if readiness.database.fault is None:
                await _require_history(database)
            yield Opened(application, every_second, stopping)
        finally:
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await parts.aclose()
            except TimeoutError:
                _log.warning("PostgreSQL connections not closed after %d s", _CLOSE_SECONDS)
