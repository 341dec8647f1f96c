"""How the command line ends on signals: by SystemExit, which stops an embedded PostgreSQL.

While it serves, uvicorn handles SIGTERM and SIGINT: see ``server.http.server``.
"""

import signal
from types import FrameType
from typing import NoReturn


def exit_on_termination() -> None:
    """Exit with code 0 on SIGTERM, and on SIGHUP unless it is ignored, as under nohup.

    SIGHUP is raised again as SIGTERM, for the handler that is installed then: this module's, or
    uvicorn's while it serves.
    """
    signal.signal(signal.SIGTERM, _exit)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _terminate)


def exit_on_interrupt() -> None:
    """Exit with code 0 on Ctrl-C, and not with click's "Aborted!" and code 1."""
    signal.signal(signal.SIGINT, _exit)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)


def _exit(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
