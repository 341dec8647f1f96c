"""Where the log is written. A slow or closed reader of stdout does not block the service."""

import asyncio
import logging
import os
import select
from contextlib import suppress
from contextvars import Context
from typing import Final, TextIO

# Bytes. A pipe that is ready takes as many without blocking, and without interleaving: pipe(7).
_PIPE_BUF: Final = 4096

_log = logging.getLogger(__name__)


class LogSink:
    """Writes lines to a file, a terminal or a pipe, and drops lines that would have to wait.

    It is a logger for structlog, and a stream for the standard library. On an event loop, lines of
    one iteration are written together at its end; structlog's warnings and errors are written at
    once, before the caller's answer.
    """

    def __init__(self, stream: TextIO) -> None:
        self._file = stream.fileno()
        self._encoding = stream.encoding
        self._writable = select.poll()
        self._writable.register(self._file, select.POLLOUT)
        self._dropped = 0
        self._lines: list[bytes] = []
        self._size = 0

    def line(self, text: str) -> None:
        """Write ``text`` and a line end."""
        self.write(f"{text}\n")

    def line_now(self, text: str) -> None:
        """Write ``text`` and a line end, and flush."""
        self.write(f"{text}\n")
        self.flush()

    debug = info = line
    warning = error = critical = line_now

    def write(self, text: str) -> None:
        """Write ``text``, which ends with a line end: now, or at the end of the iteration."""
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
        """Write all lines that are buffered, or drop them if the file is not writable."""
        if not self._lines:
            return
        lines, self._lines, self._size = self._lines, [], 0
        if not self._writable.poll(0):
            self._dropped += len(lines)
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            _log.warning("dropped %d log entries: stdout was not read", dropped)
        with suppress(OSError):
            os.write(self._file, b"".join(lines))
