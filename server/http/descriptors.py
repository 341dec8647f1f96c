"""Running out of file descriptors, as each connection takes one.

Works around uvloop: it closes each connection that it accepts without a descriptor left for it, and
logs nothing. It goes on to accept, so that connections are served again once others have ended.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import time
from typing import Final

_CALM: Final = 2.0
"""Seconds with a free descriptor after which the shortage counts as over. Before that, clients that
try again may take each descriptor that becomes free."""

_log = logging.getLogger(__name__)


class DescriptorWatch:
    """Logs when the process has no file descriptor left, and when it has some again."""

    def __init__(self) -> None:
        self._last_exhausted: float | None = None

    def poll(self, connections: int) -> None:
        """Look for a free descriptor; ``connections`` is how many connections are open."""
        now = time.monotonic()
        if not _has_free_descriptor():
            if self._last_exhausted is None:
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                _log.error(
                    "out of file descriptors (limit %d, connections open %d): new connections are"
                    " closed until others end; raise the limit of open files (ulimit -n)",
                    limit,
                    connections,
                )
            self._last_exhausted = now
        elif self._last_exhausted is not None and now - self._last_exhausted > _CALM:
            self._last_exhausted = None
            _log.warning(
                "file descriptors are free again (connections open %d): new connections are served",
                connections,
            )


def _has_free_descriptor() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True
