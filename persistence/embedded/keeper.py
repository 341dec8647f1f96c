"""Starts the embedded PostgreSQL again when it was killed while the program runs."""

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from persistence.embedded.server import postmaster, revive

_INTERVAL: Final = 0.5
"""Seconds from one look at the server's process to the next."""

_LONGEST_PAUSE: Final = 30.0
"""Seconds between attempts to start the server, at most. The first one is made at once."""

_log = logging.getLogger(__name__)


class Keeper:
    """Watches the server that ``running`` keeps. Use it as an async context manager within that.

    Each process that uses the server may do so: one of them starts it. PostgreSQL itself recovers
    from the loss of any of its processes but the first, the postmaster, for which there is this. A
    server that was shut down is left so: its files may be being copied.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Begin to watch."""
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Watch no longer, once a start that is under way has ended.

        Else its thread might start the server after the last user has stopped it.
        """
        self._ended.set()
        await self._task

    async def _run(self) -> None:
        server, pause = None, _INTERVAL
        while not self._ended.is_set():
            try:
                if not _runs(server):
                    # In a thread: a start takes seconds, with recovery longer.
                    server = await asyncio.to_thread(_found, self._data_dir)
                pause = _INTERVAL
            except Exception as error:  # whatever it is, the next attempt may succeed
                pause = min(2 * pause, _LONGEST_PAUSE)
                _log.error(
                    "the embedded PostgreSQL does not run; trying again in %g s: %s",
                    pause,
                    str(error) or type(error).__name__,
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), pause)


def _found(data_dir: Path) -> psutil.Process | None:
    """Return the server's process, once it has been started again if it had ended."""
    found = postmaster(data_dir)
    if found is None and revive(data_dir):
        _log.warning("the embedded PostgreSQL had ended, and was started again")
        found = postmaster(data_dir)
    return found


def _runs(process: psutil.Process | None) -> bool:
    """Return whether it is still the same process, by its start; reads a file in /proc."""
    try:
        return (
            process is not None
            and process.is_running()
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
