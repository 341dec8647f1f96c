"""Where the log goes. Whoever reads it may be slow, or gone; the service goes on."""

import logging
import os
import select
from contextlib import suppress
from typing import TextIO

_log = logging.getLogger(__name__)


class Output:
    """Writes lines to a file, a terminal or a pipe, and drops those that would have to wait.

    A logger for structlog, and a stream for the standard library.
    """

    def __init__(self, stream: TextIO) -> None:
        self._file = stream.fileno()
        self._encoding = stream.encoding
        self._ready = select.poll()
        self._ready.register(self._file, select.POLLOUT)
        self._dropped = 0

    def line(self, text: str) -> None:
        """Write ``text`` and the end of a line."""
        self.write(f"{text}\n")

    debug = info = warning = error = critical = line

    def write(self, text: str) -> None:
        """Write ``text``, which ends with a line."""
        # Of a pipe, that means room for PIPE_BUF bytes: see pipe(7).
        if not self._ready.poll(0):
            self._dropped += 1
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            _log.warning("entries of the log dropped, because nobody read them: %d", dropped)
        data = text.encode(self._encoding, "backslashreplace")
        with suppress(OSError):
            os.write(self._file, data)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""
