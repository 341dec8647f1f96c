"""One process of the service: its pool, its port, and how it ends."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

import uvicorn
import uvloop

from persistence.database import Database
from persistence.feed import PaymentFeed
from persistence.ledger import PaymentLedger
from persistence.schema import require_current
from server.app import Application, create_app
from server.drain import DrainingServer
from server.health import Readiness
from server.one_port import OnePortProtocol
from server.settings import Settings
from server.telemetry import telemetry

# Seconds. Longer than proxies keep an idle connection, so that they are the ones to close it.
_KEEP_ALIVE = 75

# Seconds for PostgreSQL to take leave, once nobody waits for its answers any more.
_CLOSE = 2

_log = logging.getLogger(__name__)


async def check_database(settings: Settings, database_url: str) -> None:
    """Raise a PersistenceError if the database cannot be reached or lacks migrations."""
    async with _database(settings, database_url) as database:
        await require_current(database)


def run(
    settings: Settings,
    database_url: str,
    listener: socket.socket,
    ready: Callable[[], object],
    lifeline: int | None = None,
) -> None:
    """``serve`` on an event loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, database_url, listener, ready, lifeline))


async def serve(
    settings: Settings,
    database_url: str,
    listener: socket.socket,
    ready: Callable[[], object],
    lifeline: int | None = None,
) -> None:
    """Serve on ``listener`` until SIGTERM or SIGINT, then finish what is under way.

    ``ready`` is called once connections are accepted. ``lifeline``, for a process that shares its
    listener with a parent, is the descriptor of a pipe: at its end this one stops as well.
    """
    readiness = Readiness(database_url)
    # A worker that is replaced while the database is away must come back all the same.
    database = _database(settings, database_url, eager=False)
    direct = settings.direct_database_url
    feed = PaymentFeed(
        PaymentLedger(database),
        direct.get_secret_value() if direct else database_url,
        connect_timeout=settings.connect_timeout,
    )

    def stopping() -> None:
        readiness.stop()
        feed.end()  # streams, which would not end by themselves

    async with telemetry() as tracing:
        app = create_app(settings, database, feed, readiness, tracing)
        limit = settings.shutdown_timeout
        server = DrainingServer(_config(app, settings), limit, ready, stopping, app.every_second)
        if lifeline is not None:
            server.shares_listener = True
            asyncio.get_running_loop().add_reader(lifeline, _orphaned, server, lifeline)
        parts = AsyncExitStack()
        try:
            for part in (database, readiness.database, feed):
                await parts.enter_async_context(part)
            await server.serve(sockets=[listener])
        finally:
            try:
                async with asyncio.timeout(_CLOSE):
                    await parts.aclose()
            except TimeoutError:
                _log.warning("PostgreSQL did not take leave in %d s", _CLOSE)
            _log.info("stopped")


def _config(app: Application, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app.asgi,
        http=OnePortProtocol.of(app.turn_away, settings.max_request_bytes),
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        # A pipelined request would begin with what the log was told of the one before it.
        reset_contextvars=True,
    )


def _orphaned(server: DrainingServer, lifeline: int) -> None:
    _log.warning("the parent process is gone; stopping")
    asyncio.get_running_loop().remove_reader(lifeline)
    server.shares_listener = False
    server.should_exit = True


def _database(settings: Settings, url: str, *, eager: bool = True) -> Database:
    return Database(
        url,
        eager=eager,
        max_connections=settings.pool_size,
        connect_timeout=settings.connect_timeout,
        statement_timeout=settings.statement_timeout,
        prepared_statements=settings.prepared_statements,
    )
