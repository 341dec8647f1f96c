"""Joins what a connection writes in one iteration of the event loop.

uvicorn writes the head, the body and the end of a response one by one, and uvloop sends each write
at once: in a segment of its own, and over TLS in a record of its own. Each costs a system call and
wakes the client. And a client whose deadline passes between two of them has the head of an error
without its body, as for a deadline that server and client notice at the same time.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

_MAX_JOINED: Final = 64 * 1024
"""Bytes that are held at most. Above that, the transport says when to stop writing."""


class JoinedWrites:
    """An ``asyncio.Transport`` that writes to another one, once an iteration of the loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write ``data`` soon, together with what is written before and after it."""
        if not data:
            return
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._size += len(data)
        if self._size >= _MAX_JOINED:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._held:
            data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held = []
            self._size = 0
            if not self._transport.is_closing():
                self._transport.write(data)

    def write_eof(self) -> None:
        """Close the sending side after what is held."""
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Close the transport after what is held."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether the transport is closed, or about to be."""
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        """Return what the other transport has."""
        return getattr(self._transport, name)
