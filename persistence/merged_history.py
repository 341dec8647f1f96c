"""Taken and refused events of payments as one sequence.

Taken events stay in the order of their ids, which is that of the changes. Their times need not be:
a clock can be set back, and a migration enters events of its own. So a refused event is placed
before the first taken event that is later, and after all before that one. Which page has it depends
on nothing else, so that pages lose and repeat no event.
"""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from persistence.models import HistoryEntry, HistoryKey, PaymentEvent, RefusedEvent

START: Final = HistoryKey(datetime(1970, 1, 1, tzinfo=UTC), 0, 0)
"""The place before the first entry of a history."""


def is_first(event: PaymentEvent, refused: RefusedEvent) -> bool:
    """Return whether ``event`` comes before ``refused``; of the same time, it does."""
    return event.created_at <= refused.first_refused_at


def merged(
    events: Iterable[PaymentEvent], refused: Iterable[RefusedEvent], after: HistoryKey
) -> Iterator[HistoryEntry]:
    """Yield the taken and the refused events that follow on ``after``, each with its place.

    ``events`` are sorted by id, ``refused`` by time and id.
    """
    key = after
    taken, others = deque(events), deque(refused)
    while taken or others:
        if taken and (not others or is_first(taken[0], others[0])):
            event = taken.popleft()
            key = key._replace(event_id=event.id)
            yield HistoryEntry(event, key)
        else:
            other = others.popleft()
            key = key._replace(first_refused_at=other.first_refused_at, refused_id=other.id)
            yield HistoryEntry(other, key)


async def merged_streams(
    events: AsyncIterator[PaymentEvent], refused: AsyncIterator[RefusedEvent]
) -> AsyncIterator[PaymentEvent | RefusedEvent]:
    """Yield taken and refused events, both sorted by id, as one stream."""
    event, other = await anext(events, None), await anext(refused, None)
    while event is not None or other is not None:
        if other is None or (event is not None and is_first(event, other)):
            assert event is not None  # noqa: S101 - the condition of the loop
            yield event
            event = await anext(events, None)
        else:
            yield other
            other = await anext(refused, None)
