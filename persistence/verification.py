"""Whether the payments are what their histories say: ``listings verify``.

``history_rules`` are what each order and its events must fulfil. Besides, events are not used twice
under a key, refused events are sound, and sequences have passed the ids that rows have.

Orders are read in chunks by id, each with its events in one snapshot: a row and its history always
belong together, whatever the service writes meanwhile. One snapshot for all would hold back VACUUM
until the end, for minutes on a shop with many orders, and find nothing more: no rule but that of
keys is about several orders, and those are unique by an index.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from persistence import verification_queries as queries
from persistence.diagnostics.epochs import Epoch, current_epoch
from persistence.diagnostics.object_checks import missing_indexes
from persistence.history_rules import Disagreement, Row, Transactions, history_faults
from persistence.maintenance import Connection, owner_session

_CHUNK: Final = 20_000  # orders
_LOOK: Final = 1_000
"""Orders that are fetched at a time."""
_SESSIONS: Final = 2
"""Sessions that read at a time."""
_BEFORE_ALL: Final = -(2**63)
_AFTER_ALL: Final = 2**63 - 1

_Chunk: TypeAlias = tuple[int, int]
"""Ids of orders: after the first up to the second one."""


class Verified(NamedTuple):
    """What was read, and what was found in it."""

    orders: int
    events: int
    refused: int
    faults: Sequence[Disagreement]
    """By order."""
    sequences: Sequence[str]
    """A sentence about each sequence that is behind."""
    unread: Sequence[str]
    """The tables whose sequences the role may not read. Of the service's role, ``orders``."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing disagrees."""
        return not self.faults and not self.sequences


async def last_order_id(url: str) -> int:
    """Return the greatest id of an order, 0 if there is none. ``url`` is a libpq URL.

    Raises MaintenanceError or InvalidDatabaseURL.
    """
    async with owner_session(url) as connection:
        return int(await connection.fetchval(queries.LAST_ORDER))


async def verify(url: str, progress: Callable[[int], object] = lambda _ids: None) -> Verified:
    """Verify all orders, and call ``progress`` with how many ids were passed since the last time.

    ``url`` is a libpq URL of the owner, or of the service's role, which may not read the sequence
    of orders. Nothing is written. Raises MaintenanceError or InvalidDatabaseURL;
    ``diagnostics.Fault`` when the history has no epoch.
    """
    async with owner_session(url) as connection:
        epoch, chunks = await current_epoch(connection), _Chunks(connection)
        readers = [_Reader(epoch, chunks, progress) for _ in range(_SESSIONS)]
        try:
            async with asyncio.TaskGroup() as group:
                for reader in readers:
                    group.create_task(reader.run(url))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        total = _Counts()
        for reader in readers:
            total.add(reader.counts)
        faults = [fault for reader in readers for fault in reader.faults]
        faults += [fault async for fault in _repetitions(connection)]
        sequences, unread = await _sequences(connection, total)
    faults.sort(key=lambda fault: fault.order_id)
    return Verified(total.orders, total.events, total.refused, faults, sequences, unread)


async def verify_orders(url: str, order_ids: Iterable[int]) -> Verified:
    """Verify these orders, but neither sequences nor keys of other orders. Else as ``verify``."""
    faults, counts = [], _Counts()
    async with owner_session(url) as connection:
        epoch = await current_epoch(connection)
        for order_id in sorted(set(order_ids)):
            async with _snapshot(connection):
                faults += await _faults_of_orders(connection, [order_id], epoch, counts)
                faults += await _refused_faults(connection, (order_id - 1, order_id), epoch)
    return Verified(counts.orders, counts.events, 0, faults, (), ())


@dataclass
class _Counts:
    """How many rows were read, and the greatest ids of those with a sequence of their own."""

    orders: int = 0
    events: int = 0
    refused: int = 0
    last_event_id: int = 0
    last_refused_id: int = 0

    def add(self, other: "_Counts") -> None:
        self.orders += other.orders
        self.events += other.events
        self.refused += other.refused
        self.last_event_id = max(self.last_event_id, other.last_event_id)
        self.last_refused_id = max(self.last_refused_id, other.last_refused_id)


class _Chunks:
    """Ranges of ids of orders, which together have all."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self._last: int | None = _BEFORE_ALL

    async def next(self) -> _Chunk | None:
        """Return the id before the next range, and its last one; None after the end."""
        async with self._lock:
            if (after := self._last) is None:
                return None
            self._last = await self._connection.fetchval(queries.NEXT, after, _CHUNK)
            # Events outlive their orders: the last range has no end.
            return after, _AFTER_ALL if self._last is None else self._last


class _Reader:
    """Reads some of the chunks, in a session of its own."""

    def __init__(self, epoch: Epoch, chunks: _Chunks, progress: Callable[[int], object]) -> None:
        self._epoch = epoch
        self._chunks = chunks
        self._progress = progress
        self.faults: list[Disagreement] = []
        self.counts = _Counts()

    async def run(self, url: str) -> None:
        async with owner_session(url) as connection:
            while (chunk := await self._chunks.next()) is not None:
                async with _snapshot(connection):
                    await self._read(connection, chunk)
                if chunk[1] != _AFTER_ALL:
                    self._progress(chunk[1] - max(chunk[0], 0))

    async def _read(self, connection: Connection, chunk: _Chunk) -> None:
        found = await connection.fetchrow(queries.SCREEN, *chunk, self._epoch.exempt_event_id)
        refused = await connection.fetchrow(queries.REFUSED, *chunk)
        assert found is not None and refused is not None  # noqa: S101, PT018 - they are aggregates
        *counts, odd = found
        self.counts.add(_Counts(counts[0], counts[1], refused[0], counts[2], refused[1]))
        for first in range(0, len(odd), _LOOK):
            self.faults += await _faults_of_orders(
                connection, odd[first : first + _LOOK], self._epoch, _Counts()
            )
        if refused[0]:
            self.faults += await _refused_faults(connection, chunk, self._epoch)


@asynccontextmanager
async def _snapshot(connection: Connection) -> AsyncIterator[None]:
    """Read one snapshot within the context."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # A plan for any range would be one for a small part of a table.
        await connection.execute(
            "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL jit = off"
        )
        yield


async def _faults_of_orders(
    connection: Connection, order_ids: Sequence[int], epoch: Epoch, counts: _Counts
) -> list[Disagreement]:
    """Judge these orders by the rules, and count them and their events."""
    end = await connection.fetchval(queries.END_OF_TRANSACTIONS)
    transactions = Transactions(end, epoch.exempt_event_id)
    orders = {row["id"]: row for row in await connection.fetch(queries.ORDERS, order_ids)}
    events: defaultdict[int, list[Row]] = defaultdict(list)
    for row in await connection.fetch(queries.EVENTS, order_ids):
        events[row["order_id"]].append(row)
    counts.add(_Counts(len(orders), sum(map(len, events.values()))))
    faults: list[Disagreement] = []
    for order_id in order_ids:
        faults += history_faults(order_id, orders.get(order_id), events[order_id], transactions)
    return faults


async def _refused_faults(
    connection: Connection, chunk: _Chunk, epoch: Epoch
) -> list[Disagreement]:
    rows = await connection.fetch(queries.REFUSED_FAULTS, *chunk, epoch.exempt_refused_event_id)
    return [Disagreement(row[0], text, refused_id=row[1]) for row in rows for text in row[2]]


async def _repetitions(connection: Connection) -> AsyncIterator[Disagreement]:
    """Yield what is not unique, where no index of PostgreSQL keeps it from being repeated."""
    missing = await missing_indexes(connection)
    for unique in queries.UNIQUE:
        if unique.kept_by not in missing:
            continue
        for order_id, row_id, first_id in await connection.fetch(unique.repetitions):
            is_event = unique.table == "order_payment_events"
            is_refused = unique.table == "refused_payment_events"
            yield Disagreement(
                order_id,
                f"{unique.fault} {first_id}",
                row_id if is_event else None,
                row_id if is_refused else None,
            )


async def _sequences(connection: Connection, total: _Counts) -> tuple[list[str], list[str]]:
    """Return a sentence about each sequence that is behind, and the tables of unreadable ones."""
    # Each id was given before the row was committed, and these rows were read before.
    greatest = {
        "order_payment_events": total.last_event_id,
        "refused_payment_events": total.last_refused_id,
        "orders": await connection.fetchval(queries.LAST_ORDER),
    }
    behind: list[str] = []
    unread: list[str] = []
    for table, row_id in greatest.items():
        row = await connection.fetchrow(queries.SEQUENCE, table)
        assert row is not None  # noqa: S101 - it has no WHERE
        name, last = row
        if name is None:  # a shop may give its orders ids without one
            continue
        if last is None:
            unread.append(table)
        # A shop may choose the ids of its orders itself, and never use the sequence. Where no
        # sequence was used, they were left behind, as by logical replication.
        elif last < row_id and (last or behind or table != "orders"):
            behind.append(f"the sequence {name} is at {last}, behind row {row_id} of {table}")
    return behind, unread
