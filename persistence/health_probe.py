"""Whether the database answers, asked about once a second on a connection of its own.

A pool whose connections are all busy is no fault of the database, and takes no part in this.
"""

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Final, NoReturn, Self

import asyncpg

from persistence.dsn import asyncpg_dsn

# Seconds. Together they are how long a fault may go unseen.
_PAUSE: Final = 0.5  # between two questions, and between two attempts to connect
_PATIENCE: Final = 1.0  # for an answer

_FAULTS = (
    (TimeoutError, "the database does not answer in time"),
    (asyncpg.CannotConnectNowError, "the database is starting up or shutting down"),
    (asyncpg.TooManyConnectionsError, "the database has no connection left for us"),
    (asyncpg.InvalidAuthorizationSpecificationError, "the database refuses our user or password"),
    (asyncpg.InvalidCatalogNameError, "the database does not exist"),
    ((OSError, asyncpg.InterfaceError), "the database cannot be reached"),
    (asyncpg.PostgresConnectionError, "the database cannot be reached"),
)

_log = logging.getLogger(__name__)


class Pulse:
    """Watches one database. Use it as an async context manager."""

    def __init__(self, url: str, changed: Callable[[], object]) -> None:
        """Describe the watching of the database at ``url``, a libpq URL; nothing is opened yet.

        ``changed`` is called whenever ``fault`` has changed.
        """
        self.fault: str | None = "the database has not been asked yet"
        """What is wrong with the database, for people, without names of hosts or users."""
        self._dsn = asyncpg_dsn(url)
        self._changed = changed
        self._asked = asyncio.Event()
        self._had_answers = False  # on the present connection, or the one just lost
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Ask for the first time, and go on in the background."""
        self._task = asyncio.create_task(self._watch())
        await self._asked.wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                await self._ask_again_and_again()
            except Exception as error:  # whatever it is, watching must go on
                if self._had_answers and not isinstance(error, TimeoutError):
                    # It may be this connection alone that was lost.
                    self._had_answers = False
                    continue
                self._found(_described(error), error)
            await asyncio.sleep(_PAUSE)

    async def _ask_again_and_again(self) -> NoReturn:
        """Ask until the connection is lost or no answer comes, which is raised."""
        connection = await asyncpg.connect(
            dsn=self._dsn, timeout=_PATIENCE, command_timeout=_PATIENCE
        )
        try:
            while True:
                # Without arguments it is a simple query: no prepared statement, which a
                # connection pooler might not know.
                await connection.execute("SELECT")
                self._had_answers = True
                self._found(None)
                await asyncio.sleep(_PAUSE)
        finally:
            connection.terminate()

    def _found(self, fault: str | None, error: Exception | None = None) -> None:
        if fault != self.fault:
            if fault is not None:
                _log.warning("%s: %s", fault, error or type(error).__name__)
            elif self._asked.is_set():
                _log.info("the database answers again")
            self.fault = fault
            self._changed()
        self._asked.set()


def _described(error: Exception) -> str:
    for kinds, description in _FAULTS:
        if isinstance(error, kinds):
            return description
    return f"the database reports an error ({getattr(error, 'sqlstate', type(error).__name__)})"
