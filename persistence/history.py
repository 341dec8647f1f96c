"""The history of payments, ``order_payment_events``, as PostgreSQL has recorded it.

Those who follow it need to know how far they are, and ids cannot tell: of two updates at a time,
the one with the lower id may be committed later. A ``pg_snapshot`` can. It says of each transaction
whether it was committed by then; so between two snapshots lies what was committed in the meantime,
neither more nor less, and without waiting for anybody's transaction to end.

A snapshot also tells of transactions that left nothing behind, not even on disk. After a crash,
PostgreSQL gives their numbers to others, whose events would then count as seen. So a position ends
with the last event that there is: whatever came before that is on disk.
"""

import base64
import binascii
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from persistence import queries
from persistence.database import Database
from persistence.errors import InvalidPosition
from persistence.models import PaymentEvent, Storefronts

_PAGE = 500
_MOST_IN_PROGRESS = 5_000  # transactions; a server has a place for each of its connections
_FIRST_BEYOND = 2**63


class Snapshot(NamedTuple):
    """A ``pg_snapshot``: what is below ``xmin`` was over, what is from ``xmax`` on had not begun.

    See https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT-PARTS.
    """

    xmin: int
    xmax: int
    in_progress: tuple[int, ...]


@dataclass(frozen=True)
class Position:
    """How far somebody has followed the ledger: everything up to ``seen``.

    On the way from there to ``reaching``, also the events with ids up to ``last_id``.
    """

    seen: Snapshot
    reaching: Snapshot | None = None
    last_id: int = 0

    def __str__(self) -> str:
        """Return the position as an opaque text."""
        parts = [_text(self.seen)]
        if self.reaching is not None:
            parts += [_text(self.reaching), str(self.last_id)]
        return base64.urlsafe_b64encode(" ".join(parts).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position that ``str`` made ``text`` of. Raises InvalidPosition."""
        try:
            padded = text + "=" * (-len(text) % 4)
            seen, *rest = base64.b64decode(padded, b"-_", validate=True).decode("ascii").split(" ")
            if not rest:
                return cls(_snapshot(seen))
            reaching, last_id = rest
            return cls(_snapshot(seen), _snapshot(reaching), _number(last_id))
        except (ValueError, binascii.Error) as error:
            raise InvalidPosition("this is not a position in the ledger") from error


@dataclass(frozen=True)
class Watched:
    """The payments that somebody follows: those of some orders and of some storefronts."""

    order_ids: frozenset[int] = frozenset()
    storefront_ids: frozenset[int] = frozenset()
    within: frozenset[int] | None = None
    """The storefronts whose payments there are for them, None for all."""

    def __contains__(self, event: PaymentEvent) -> bool:
        """Whether ``event`` is one of theirs."""
        return (
            event.order_id in self.order_ids or event.storefront_id in self.storefront_ids
        ) and (self.within is None or event.storefront_id in self.within)

    def __or__(self, other: "Watched") -> "Watched":
        """Return what is followed by either, and maybe more."""
        unlimited = self.within is None or other.within is None
        return Watched(
            self.order_ids | other.order_ids,
            self.storefront_ids | other.storefront_ids,
            None if unlimited else (self.within or frozenset()) | (other.within or frozenset()),
        )


class PaymentLedger:
    """Reads the history of payments. Nobody can write it but a trigger in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_events(
        self,
        order_id: int,
        limit: int,
        after_id: int = 0,
        storefronts: Storefronts = None,
    ) -> list[PaymentEvent]:
        """Return up to ``limit`` events of an order with ids above ``after_id``, oldest first.

        Only what happened in ``storefronts``, unless it is None.
        """
        within = queries.limiting(storefronts)
        sql = queries.list_events(limited=bool(within))
        rows = await self._database.fetch(sql, limit, order_id, after_id, *within)
        return list(map(PaymentEvent._make, rows))

    async def snapshot(self) -> Snapshot:
        """Return what is committed by now, up to the last event."""
        row = await self._database.fetchrow(queries.current_snapshot())
        assert row is not None  # noqa: S101 - it has no WHERE
        (xmin, xmax, in_progress), last = row
        end = min(xmax, 1 + (last or 0))
        return Snapshot(min(xmin, end), end, tuple(each for each in in_progress if each < end))

    async def events_since(
        self, position: Position, upto: Snapshot, watched: Watched
    ) -> AsyncIterator[tuple[PaymentEvent, Position]]:
        """Yield what was committed after ``position`` and up to ``upto``, each with its position.

        The events of one order come in the order in which they were committed. Raises
        InvalidPosition, when ``position`` lies beyond ``upto``, or another PersistenceError; going
        on from the last position then leaves nothing out.
        """
        if upto.xmax < (position.reaching or position.seen).xmax:
            raise InvalidPosition("the position is one of another database")
        if position.reaching is not None:
            async for each in self._between(position, position.reaching, watched):
                yield each
            position = Position(position.reaching)
        async for each in self._between(position, upto, watched):
            yield each

    async def _between(
        self, position: Position, upto: Snapshot, watched: Watched
    ) -> AsyncIterator[tuple[PaymentEvent, Position]]:
        order_ids, storefront_ids = list(watched.order_ids), list(watched.storefront_ids)
        within = queries.limiting(watched.within)
        sql = queries.events_between(
            order_ids=bool(order_ids), storefront_ids=bool(storefront_ids), limited=bool(within)
        )
        given = [ids for ids in (order_ids, storefront_ids) if ids]
        last_id, more = position.last_id, position.seen != upto and bool(given)
        while more:
            rows = await self._database.fetch(
                sql, _PAGE, position.seen, upto, last_id, *given, *within
            )
            for event in map(PaymentEvent._make, rows):
                last_id = event.id
                yield event, Position(position.seen, upto, last_id)
            more = len(rows) == _PAGE


def _text(snapshot: Snapshot) -> str:
    return f"{snapshot.xmin}:{snapshot.xmax}:{','.join(map(str, snapshot.in_progress))}"


def _snapshot(text: str) -> Snapshot:
    xmin, xmax, in_progress = text.split(":")
    numbers = in_progress.split(",", _MOST_IN_PROGRESS) if in_progress else []
    snapshot = Snapshot(_number(xmin), _number(xmax), tuple(map(_number, numbers)))
    in_order = (1, snapshot.xmin, *snapshot.in_progress)
    # What PostgreSQL demands of one; what is in progress is sorted, and each once.
    if list(in_order) != sorted(in_order) or len(set(numbers)) != len(numbers):
        raise ValueError("the transactions are not in order")
    if snapshot.xmax < snapshot.xmin or any(n >= snapshot.xmax for n in snapshot.in_progress):
        raise ValueError("it ends before it begins")
    return snapshot


def _number(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and len(text) < 20 and int(text) < _FIRST_BEYOND):
        raise ValueError("this is not a number of a transaction or an event")
    return int(text)
