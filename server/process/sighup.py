"""SIGHUP: either the controlling terminal was closed, or files are to be reloaded.

The kernel sends the same signal for both. They are told apart by whether ``/dev/tty`` still opens.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class ControllingTerminal:
    """The terminal that controlled the process when this was made, if one did."""

    def __init__(self) -> None:
        self._was_open = _has_terminal()

    def is_closed(self) -> bool:
        """Return whether there was one, and it has been closed since."""
        return self._was_open and not _has_terminal()


@contextmanager
def reload_on_sighup(reload: Callable[[], object]) -> Iterator[None]:
    """Have the running event loop call ``reload`` on SIGHUP, until the exit.

    When the terminal was closed, the handler that was installed before is called instead. SIGHUP
    that the process ignores, as under nohup, stays ignored. SIGHUP is unblocked.
    """
    loop, terminal = asyncio.get_running_loop(), ControllingTerminal()
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if terminal.is_closed() and callable(before):
            before(number, frame)
        else:
            loop.call_soon_threadsafe(reload)

    signal.signal(signal.SIGHUP, handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:  # ENXIO without one
        return False
    return True
