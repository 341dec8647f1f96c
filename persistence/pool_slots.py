"""Slots for the calls that use a connection of the pool, or open one.

Works around asyncpg's pool, which opens a connection whenever none is idle, and fails the call if
that is refused: for lack of slots (``max_connections``, CONNECTION LIMIT of a role or a database, a
pooler's limits), or since a password or ``pg_hba.conf`` has changed. The pool may have other
connections, which work.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import Final

import asyncpg

_WITHHELD: Final = 1.0
"""Seconds for which a slot is not given to a call, after a connection was refused to it."""

_LOG_AGAIN: Final = 60.0  # seconds

_log = logging.getLogger(__name__)


class PoolSlots:
    """As many slots as the pool may have connections.

    A call that is refused a connection waits for one that another call gives back, and leaves the
    slot unused for a second. So each process asks for no more connections in a second than its pool
    lacks. When no call has a connection, there is nothing to wait for, and all of them fail.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._withheld: set[asyncio.TimerHandle] = set()
        self._log_from = 0.0
        self.used = 0
        """How many calls have a connection, or open one."""

    @property
    def waiting(self) -> int:
        """How many calls wait for a slot."""
        return len(self._waiters)

    async def acquire(
        self, connect: Callable[[], Awaitable[object]], has_idle: Callable[[], bool]
    ) -> None:
        """Take a slot, and have ``connect`` take a connection from the pool, or open one.

        ``has_idle`` says whether the pool has a connection that no call uses. Raises what
        ``connect`` raises, and then has no slot.
        """
        while True:
            if self._is_free:
                self.used += 1
            else:
                await self._wait()
            try:
                await connect()
            except BaseException as error:
                self.used -= 1
                if not _is_refusal(error):
                    self._give_to_waiters()
                    raise
                if not self.used and not has_idle():
                    self._fail_waiters(error)
                    raise
                self._withhold()
                self._warn(error)
            else:
                return

    def release(self) -> None:
        """Give the slot back, when the pool has taken the connection back."""
        self.used -= 1
        self._give_to_waiters()

    @property
    def _is_free(self) -> bool:
        return self.used + len(self._withheld) < self._size

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with suppress(ValueError):
                    self._waiters.remove(waiter)
            elif waiter.exception() is None:
                self.release()
            raise

    def _give_to_waiters(self) -> None:
        while self._waiters and self._is_free:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.used += 1
                waiter.set_result(None)

    def _fail_waiters(self, error: BaseException) -> None:
        for timer in self._withheld:
            timer.cancel()
        self._withheld.clear()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    def _withhold(self) -> None:
        def end() -> None:
            self._withheld.discard(timer)
            self._give_to_waiters()

        timer = asyncio.get_running_loop().call_later(_WITHHELD, end, context=Context())
        self._withheld.add(timer)

    def _warn(self, error: BaseException) -> None:
        now = time.monotonic()
        if now >= self._log_from:
            self._log_from = now + _LOG_AGAIN
            _log.warning(
                "cannot open another connection to PostgreSQL; calls share %d of %d: %s",
                self.used,
                self._size,
                error,
            )


def _is_refusal(error: BaseException) -> bool:
    """Return whether a server or pooler refuses, rather than takes its time."""
    return isinstance(error, asyncpg.PostgresError | OSError) and not isinstance(
        error, TimeoutError
    )
