"""SIGHUP: the terminal was closed, or somebody wants files to be read again."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminal:
    """The terminal that controls the process at the time, if one does."""

    def __init__(self) -> None:
        self._was_there = _is_there()

    def is_gone(self) -> bool:
        """Whether it has been closed since."""
        return self._was_there and not _is_there()


@contextmanager
def reloading(reload: Callable[[], object]) -> Iterator[None]:
    """Have the event loop call ``reload`` when SIGHUP comes, unless the terminal is gone.

    Then, it is handled as before. It may have been blocked until now.
    """
    loop, terminal = asyncio.get_running_loop(), Terminal()
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:  # which nohup has set
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if terminal.is_gone() and callable(before):
            before(number, frame)
        else:
            loop.call_soon_threadsafe(reload)

    signal.signal(signal.SIGHUP, handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:  # ENXIO: there is none
        return False
    return True
