"""One process of the service: its pool, its port, and how it ends."""

import socket
from collections.abc import Callable

import uvicorn

from persistence.database import Database
from persistence.feed import PaymentFeed
from persistence.ledger import PaymentLedger
from persistence.schema import require_current
from server.app import create_app
from server.http2 import RecyclingProtocol
from server.settings import Settings, SettingsError

# Seconds. Longer than proxies keep an idle connection, so that they are the ones to close it.
_KEEP_ALIVE = 75

# Seconds until a silent client is asked, seconds between two questions, and how many are asked.
_TCP_KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 60,
    socket.TCP_KEEPINTVL: 15,
    socket.TCP_KEEPCNT: 4,
}

# Seconds. A client that never sends the rest of its request must not keep the process from ending.
_DRAIN = 30


async def serve(settings: Settings, database_url: str, ready: Callable[[str], object]) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way.

    ``ready`` is called with the base URL once the port answers. Raises SettingsError
    when the address cannot be had, or a PersistenceError when the database cannot be reached or
    lacks migrations.
    """
    listener = _listen(settings.host, settings.port)
    database = Database(
        database_url,
        max_connections=settings.pool_size,
        connect_timeout=settings.connect_timeout,
        statement_timeout=settings.statement_timeout,
        max_waiting=settings.queue_size,
        prepared_statements=settings.prepared_statements,
    )
    with listener:
        async with database:
            await require_current(database)
            direct = settings.direct_database_url
            feed = PaymentFeed(
                PaymentLedger(database),
                direct.get_secret_value() if direct else database_url,
                connect_timeout=settings.connect_timeout,
            )
            config = uvicorn.Config(
                create_app(settings, database, feed),
                http=RecyclingProtocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_DRAIN,
            )
            server = _Server(config, lambda: ready(_base_url(listener)), feed.end)
            async with feed:
                await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, and what is to be called once it serves, and before it stops."""

    def __init__(
        self,
        config: uvicorn.Config,
        started: Callable[[], object],
        stopping: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._started = started
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping()  # streams, which would not end by themselves
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    # Connections inherit it. A watcher that vanished without a word would be kept for ever.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _TCP_KEEP_ALIVE.items():
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    return listener


def _base_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
