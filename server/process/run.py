"""One process of the service: its pool, its port, and how it ends."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import NamedTuple

import uvicorn
import uvloop

from persistence import diagnostics
from persistence.database import Database
from persistence.history import PaymentLedger
from persistence.schema import require_current
from persistence.watch import PaymentFeed
from server.app import Application, create_app
from server.auth.jwks_client import TokenKeys
from server.http.negotiation import OnePortProtocol
from server.http.server import DrainingServer
from server.http.tls_handshake import HandshakeProtocol
from server.observability import telemetry
from server.process import garbage
from server.process.certificates import TLS
from server.process.sighup import reloading
from server.rpc.health import Readiness
from server.settings import Settings

# Seconds. Longer than proxies keep an idle connection, so that they are the ones to close it.
_KEEP_ALIVE = 75

# Seconds for PostgreSQL to take leave, once nobody waits for its answers any more.
_CLOSE = 2

# On every answer. What is meant for programs is neither kept, nor guessed at, nor shown as a page.
# https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html#security-headers
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}

_log = logging.getLogger(__name__)


class Setup(NamedTuple):
    """What every process of the service has in common."""

    settings: Settings
    database_url: str
    tls: TLS | None
    keys: TokenKeys | None


async def check(settings: Settings, database_url: str) -> None:
    """Look for what would keep a process from serving.

    Raises SettingsError, or a PersistenceError when the database cannot be reached, or lacks rights
    or migrations.
    """
    telemetry.wanted()
    async with diagnostics.connected(database_url, timeout=settings.connect_timeout) as connection:
        await diagnostics.require_rights(connection)
    async with _database(settings, database_url) as database:
        await require_current(database)


def run(
    setup: Setup,
    listener: socket.socket,
    ready: Callable[[], object],
    lifeline: int | None = None,
) -> None:
    """``serve`` on an event loop of its own, in a process of its own."""

    def serving() -> None:
        garbage.resume_collection()
        ready()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(setup, listener, serving, lifeline))


async def serve(
    setup: Setup,
    listener: socket.socket,
    ready: Callable[[], object],
    lifeline: int | None = None,
) -> None:
    """Serve on ``listener`` until SIGTERM or SIGINT, then finish what is under way.

    Files that may change are watched, and read again on SIGHUP in any case.
    ``ready`` is called once connections are accepted. ``lifeline``, for a process that shares its
    listener with a parent, is the descriptor of a pipe: at its end this one stops as well.
    """
    settings, database_url, tls, keys = setup
    readiness = Readiness(database_url)
    # A worker that is replaced while the database is away must come back all the same.
    database = _database(settings, database_url, eager=False)
    direct = settings.direct_database_url
    feed = PaymentFeed(
        PaymentLedger(database),
        direct.get_secret_value() if direct else database_url,
        connect_timeout=settings.connect_timeout,
    )

    if keys is not None:
        readiness.faults.append(lambda: keys.fault)
        keys.changed = readiness.tell
    replaceable = [each for each in (tls, keys) if each is not None]

    def stopping() -> None:
        readiness.stop()
        feed.end()  # streams, which would not end by themselves

    def every_second() -> None:
        app.every_second()
        for each in replaceable:
            each.look()

    def reload() -> None:
        _log.info("SIGHUP: files to read again: %d", len(replaceable))
        for each in replaceable:
            each.reload()

    async with telemetry.sending() as sender:
        app = create_app(settings, database, feed, readiness, keys=keys, telemetry=sender)
        config, limit = _config(app, settings, tls), settings.shutdown_timeout
        server = DrainingServer(config, limit, ready, stopping, every_second)
        if lifeline is not None:
            server.shares_listener = True
            asyncio.get_running_loop().add_reader(lifeline, _orphaned, server, lifeline)
        parts = AsyncExitStack()
        try:
            for part in (keys, database, readiness.database, feed):
                if part is not None:
                    await parts.enter_async_context(part)
            with reloading(reload):
                await server.serve(sockets=[listener])
        finally:
            try:
                async with asyncio.timeout(_CLOSE):
                    await parts.aclose()
            except TimeoutError:
                _log.warning("PostgreSQL did not take leave in %d s", _CLOSE)
            _log.info("stopped")


def _config(app: Application, settings: Settings, tls: TLS | None) -> uvicorn.Config:
    protocol = OnePortProtocol.of(app.turn_away, app.direct, settings.max_request_bytes)
    return uvicorn.Config(
        app.asgi,
        http=HandshakeProtocol.before(protocol, lambda: tls.context) if tls else protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # anybody may send one
        timeout_keep_alive=_KEEP_ALIVE,
        # A pipelined request would begin with what the log was told of the one before it.
        reset_contextvars=True,
        headers=list(_HEADERS.items()),
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
