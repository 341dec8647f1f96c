"""Starts the embedded PostgreSQL again when it was killed while the program runs."""

import asyncio
import logging
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from persistence.embedded.server import postmaster, revive
from persistence.errors import EmbeddedPostgresError

_INTERVAL: Final = 0.5
"""Seconds from one look at the server's process to the next."""

_LONGEST_PAUSE: Final = 30.0
"""Seconds between attempts to start the server, at most. The first one is made at once."""

_log = logging.getLogger(__name__)


class Keeper:
    """Watches the server that ``running`` keeps. Use it as an async context manager within that.

    Each process that uses the server may do so: one of them starts it. PostgreSQL itself recovers
    from the loss of any of its processes but the first, the postmaster, for which there is this.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

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
        """Watch no longer.

        A start that is under way goes on in its thread, which holds the lock for which a stop
        waits.
        """
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        server, pause = None, _INTERVAL
        while True:
            try:
                if not _runs(server):
                    # In a thread: a start takes seconds, with recovery longer.
                    server = await asyncio.to_thread(_found, self._data_dir)
                pause = _INTERVAL
            except (EmbeddedPostgresError, OSError) as error:
                pause = min(2 * pause, _LONGEST_PAUSE)
                _log.error(
                    "the embedded PostgreSQL does not start; trying again in %g s: %s", pause, error
                )
            await asyncio.sleep(pause)


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
