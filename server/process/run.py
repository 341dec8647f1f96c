"""One process of the service: an event loop, a listener, and how it ends."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import NamedTuple

import uvloop

from persistence.status_words import StatusWords
from server.auth.jwks_client import JwksClient
from server.http import Limits, Server
from server.process import garbage
from server.process.certificates import TLS
from server.process.parts import RESPONSE_HEADERS, open_application
from server.process.sighup import reload_on_sighup
from server.settings import Settings

_log = logging.getLogger(__name__)


class Setup(NamedTuple):
    """What every process of the service has in common, read before there are several."""

    settings: Settings
    database_url: str
    tls: TLS | None
    keys: JwksClient | None
    words: StatusWords


def run(
    setup: Setup,
    listener: socket.socket,
    ready: Callable[[], object],
    parent_pipe: int | None = None,
) -> None:
    """Run ``serve`` on a new event loop, in this process."""

    def serving() -> None:
        garbage.resume_collection()
        ready()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(setup, listener, serving, parent_pipe))


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
    settings, database_url, tls, keys, words = setup
    # A request of the largest size may arrive before the one ahead of it is answered.
    limits = Limits(max_read_ahead=Limits().max_read_ahead + settings.max_request_bytes)
    reloadable = [each for each in (tls, keys) if each is not None]

    def every_second() -> None:
        opened.every_second()
        if tls is not None:
            tls.poll()

    def reload() -> None:
        _log.info("SIGHUP: reloading files: %d", len(reloadable))
        for each in reloadable:
            each.reload()

    try:
        async with open_application(
            settings, database_url, keys, words, processes=settings.worker_count
        ) as opened:
            application = opened.application
            server = Server(
                application.asgi,
                limits=limits,
                tls=(lambda: tls.context) if tls else None,
                reject=application.reject,
                answer=application.fast_path,
                headers=RESPONSE_HEADERS.items(),
                started=ready,
                stopping=opened.stopping,
                every_second=every_second,
                drain_timeout=settings.shutdown_timeout,
            )
            if parent_pipe is not None:
                server.shares_listener = True
                asyncio.get_running_loop().add_reader(
                    parent_pipe, _stop_without_parent, server, parent_pipe
                )
            with reload_on_sighup(reload):
                await server.serve(sockets=[listener])
    finally:
        _log.info("stopped")


def _stop_without_parent(server: Server, parent_pipe: int) -> None:
    _log.warning("parent process ended; stopping")
    asyncio.get_running_loop().remove_reader(parent_pipe)
    server.shares_listener = False
    server.should_exit = True
