"""Where the log goes. Whoever reads it may be slow, or gone; the service goes on."""

import asyncio
import logging
import os
import select
from contextlib import suppress
from contextvars import Context
from typing import Final, TextIO

# Bytes. Of a pipe, it has room for them when it is ready, and they are not torn apart: see pipe(7).
_PIPE_BUF: Final = 4096

_log = logging.getLogger(__name__)


class Output:
    """Writes lines to a file, a terminal or a pipe, and drops those that would have to wait.

    A logger for structlog, and a stream for the standard library. On an event loop, lines that come
    in the same iteration are written together, at its end; warnings and errors are written at once,
    before a caller is told.
    """

    def __init__(self, stream: TextIO) -> None:
        self._file = stream.fileno()
        self._encoding = stream.encoding
        self._ready = select.poll()
        self._ready.register(self._file, select.POLLOUT)
        self._dropped = 0
        self._lines: list[bytes] = []
        self._size = 0

    def line(self, text: str) -> None:
        """Write ``text`` and the end of a line."""
        self.write(f"{text}\n")

    def line_now(self, text: str) -> None:
        """Write ``text`` and the end of a line, and wait for no other."""
        self.write(f"{text}\n")
        self.flush()

    debug = info = line
    warning = error = critical = line_now

    def write(self, text: str) -> None:
        """Write ``text``, which ends with a line."""
        data = text.encode(self._encoding, "backslashreplace")
        if self._size + len(data) > _PIPE_BUF:
            self.flush()
        self._lines.append(data)
        self._size += len(data)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if len(self._lines) == 1:
            loop.call_soon(self.flush, context=Context())

    def flush(self) -> None:
        """Write what has not been written."""
        if not self._lines:
            return
        lines, self._lines, self._size = self._lines, [], 0
        if not self._ready.poll(0):
            self._dropped += len(lines)
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            _log.warning("entries of the log dropped, because nobody read them: %d", dropped)
        with suppress(OSError):
            os.write(self._file, b"".join(lines))
