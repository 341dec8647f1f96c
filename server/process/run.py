"""One process of the service: an event loop, a listener, and how it ends."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import NamedTuple

import uvicorn
import uvloop

from server.app import Application
from server.auth.jwks_client import TokenKeys
from server.http.negotiation import OnePortProtocol
from server.http.server import DrainingServer
from server.http.tls_handshake import HandshakeProtocol
from server.process.certificates import TLS
from server.process.parts import RESPONSE_HEADERS, open_application
from server.process.sighup import reload_on_sighup
from server.settings import Settings

# Seconds. Longer than proxies keep an idle connection, so that they are the ones to close it.
_KEEP_ALIVE = 75

_log = logging.getLogger(__name__)


class Setup(NamedTuple):
    """What every process of the service has in common, read before there are several."""

    settings: Settings
    database_url: str
    tls: TLS | None
    keys: TokenKeys | None


def run(
    setup: Setup,
    listener: socket.socket,
    ready: Callable[[], object],
    parent_pipe: int | None = None,
) -> None:
    """``serve`` on an event loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(setup, listener, ready, parent_pipe))


async def serve(
    setup: Setup,
    listener: socket.socket,
    ready: Callable[[], object],
    parent_pipe: int | None = None,
) -> None:
    """Serve on ``listener`` until SIGTERM or SIGINT, then finish the calls that are under way.

    The files of certificates and keys are reloaded when they change, and on SIGHUP.
    ``ready`` is called once connections are accepted. ``parent_pipe``, for a process that shares
    its listener with a parent, is the read end of a pipe: at end of file this process stops, too.
    """
    settings, database_url, tls, keys = setup
    reloadable = [each for each in (tls, keys) if each is not None]

    def every_second() -> None:
        opened.every_second()
        if tls is not None:
            tls.look()

    def reload() -> None:
        _log.info("SIGHUP: reloading files: %d", len(reloadable))
        for each in reloadable:
            each.reload()

    try:
        async with open_application(settings, database_url, keys) as opened:
            config, limit = _config(opened.application, settings, tls), settings.shutdown_timeout
            server = DrainingServer(config, limit, ready, opened.stopping, every_second)
            if parent_pipe is not None:
                server.shares_listener = True
                asyncio.get_running_loop().add_reader(
                    parent_pipe, _stop_without_parent, server, parent_pipe
                )
            with reload_on_sighup(reload):
                await server.serve(sockets=[listener])
    finally:
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
        headers=list(RESPONSE_HEADERS.items()),
    )


def _stop_without_parent(server: DrainingServer, parent_pipe: int) -> None:
    _log.warning("parent process ended; stopping")
    asyncio.get_running_loop().remove_reader(parent_pipe)
    server.shares_listener = False
    server.should_exit = True
