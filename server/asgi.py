"""The service as an ASGI application, for any ASGI server: ``uvicorn server.asgi:app``.

It is the application of ``listings serve``, with the same settings, the same checks at the start
and the same parts, which its lifespan opens. So an ASGI server has to support lifespans and their
state, and a TestClient is used as a context manager. An embedded PostgreSQL is started, migrated
and given demo orders as by ``serve``.

What ``serve`` does below the application is left to the ASGI server: the address, TLS, processes,
signals, limits for slow clients and floods, the end of connections. It is HTTP/1.1 alone, without
gRPC, on a server that has no HTTP/2. LISTINGS_WORKERS says how many processes the server runs;
settings of its other tasks are ignored, with a warning. Streams of WatchOrderPayments end with the
lifespan: a server that waits for requests before that needs a limit, such as uvicorn's
``--timeout-graceful-shutdown``.

Without LISTINGS_JWKS, callers may do everything, so only requests to loopback addresses and Unix
sockets are served, others are answered with 403. LISTINGS_INSECURE=1 serves them as well.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Final

import structlog
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from persistence.errors import PersistenceError
from server.auth.bind_policy import is_local_only
from server.auth.jwks_client import JwksClient
from server.observability import telemetry
from server.process.configuration import configure
from server.process.database import served_url
from server.process.hosted import Hosted
from server.process.parts import open_application
from server.process.status_words import read_status_words
from server.settings import Settings, SettingsError, variable

_STATE: Final = "listings"
"""The key of the opened application in the state of the lifespan."""

_IGNORED: Final = ("host", "port", "tls_cert", "tls_key", "tls_client_ca", "shutdown_timeout")

_log = structlog.get_logger()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one ASGI connection. Raises RuntimeError for a request outside a lifespan."""
    if scope["type"] == "lifespan":
        await _lifespan_only(scope, receive, send)
        return
    opened: ASGIApp | None = scope.get("state", {}).get(_STATE)
    if opened is None:
        raise RuntimeError("server.asgi:app needs a server with lifespan state, and it turned on")
    await opened(scope, receive, send)


@asynccontextmanager
async def _lifespan(_router: object) -> AsyncIterator[Mapping[str, Any]]:
    """Open the application; yield the state that ``app`` finds it in.

    Raises SettingsError or PersistenceError, which the server shows, and then ends.
    """
    stack = ExitStack()
    try:
        try:
            settings = _without_ignored(configure())
            telemetry.wanted()
            words = read_status_words(settings)
            keys = JwksClient.from_settings(settings)
            # In a thread: it blocks while PostgreSQL starts, and while the database is migrated.
            url = await asyncio.to_thread(stack.enter_context, served_url(settings))
        except (SettingsError, PersistenceError) as error:
            # Without a traceback and causes, which servers log: drivers quote URLs in theirs.
            raise error.with_traceback(None) from None
        # The server has one process, unless LISTINGS_WORKERS says how many.
        processes = settings.workers or 1
        async with open_application(settings, url, keys, words, processes=processes) as opened:
            application = Hosted(opened.application.asgi, loopback_only=is_local_only(settings))
            ticking = asyncio.create_task(_every_second(opened.every_second))
            try:
                yield {_STATE: application}
            finally:
                opened.stopping()
                ticking.cancel()
                opened.every_second()
    finally:
        await asyncio.to_thread(stack.close)


def _without_ignored(given: Settings) -> Settings:
    """Return ``given`` without what the ASGI server decides; log what differs from ``serve``."""
    defaults = {name: Settings.model_fields[name].default for name in _IGNORED}
    settings = given.model_copy(update=defaults)
    for name in _IGNORED:
        if name in given.model_fields_set:
            _log.warning("setting left to the ASGI server", name=variable(name))
    if settings.insecure and settings.jwks is None:
        _log.warning("all callers may do everything", name=variable("insecure"))
    if is_local_only(settings):
        _log.info("serving loopback addresses only, without tokens")
    return settings


async def _every_second(work: Callable[[], object]) -> None:
    while True:
        await asyncio.sleep(1)
        try:
            work()
        except Exception:  # whatever it is, the next second's work must be done
            _log.exception("periodic work failed")


_lifespan_only = Router(lifespan=_lifespan)
