"""A proxy that counts a client's messages to PostgreSQL, and can hold back the answers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

_SYNC, _QUERY, _PARSE = b"S"[0], b"Q"[0], b"P"[0]
_CANCEL_REQUEST = (80877102).to_bytes(4)


@dataclass
class Counts:
    """Frontend messages seen so far: https://www.postgresql.org/docs/current/protocol-message-formats.html"""

    messages: Counter[int] = field(default_factory=Counter)
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    """How many a client has asked for."""
    cancels: int = 0
    """How many cancels PostgreSQL has sent on, as signals to a session's process."""

    @property
    def round_trips(self) -> int:
        """The number of round trips: one for each Sync or simple Query."""
        return self.messages[_SYNC] + self.messages[_QUERY]


@asynccontextmanager
async def counted(url: str, directory: Path) -> AsyncIterator[tuple[str, Counts]]:
    """Yield a URL that leads to the same database through a proxy, and what the proxy counts."""
    counts = Counts()
    counts.answering.set()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await _connect(url)
        if await _is_cancel(reader, up_writer):
            await up_reader.read()  # up to the end, by which the signal is sent
            counts.cancels += 1
            up_writer.close()
            writer.close()
            return
        counts.connections += 1
        await asyncio.gather(_count(reader, up_writer, counts), _answer(up_reader, writer, counts))

    server = await asyncio.start_unix_server(proxy, directory / ".s.PGSQL.5432")
    parts = urlsplit(url)
    through = parts._replace(
        netloc=f"{parts.netloc.rpartition('@')[0]}@", query=f"host={directory}&sslmode=disable"
    )
    async with server:
        yield urlunsplit(through), counts


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    if sockets := parse_qs(parts.query).get("host"):
        return await asyncio.open_unix_connection(f"{sockets[0]}/.s.PGSQL.{parts.port or 5432}")
    return await asyncio.open_connection(parts.hostname, parts.port or 5432)


async def _is_cancel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Pass on the first message, which has no type; return whether it is a cancel."""
    try:
        head = await reader.readexactly(8)
        writer.write(head + await reader.readexactly(int.from_bytes(head[:4]) - 8))
    except (asyncio.IncompleteReadError, OSError):
        writer.close()
        return False
    return head[4:] == _CANCEL_REQUEST


async def _count(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: Counts
) -> None:
    try:
        while True:
            head = await reader.readexactly(5)
            counts.messages[head[0]] += 1
            writer.write(head + await reader.readexactly(int.from_bytes(head[1:]) - 4))
    except (asyncio.IncompleteReadError, OSError):
        writer.close()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: Counts
) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            await counts.answering.wait()
            writer.write(data)
        await counts.answering.wait()
    writer.close()
