"""An order's history with its refused events: page by page, it is one sequence."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import cycle
from random import Random
from typing import Any, Final, TypeAlias

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistence.database import Database
from persistence.history import PaymentHistory
from persistence.merged_history import START, merged
from persistence.models import HistoryEntry, PaymentEvent, RefusedEvent
from tests.support import databases
from tests.support.history import connect

NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)

Kind: TypeAlias = type[PaymentEvent] | type[RefusedEvent]
Place: TypeAlias = tuple[Kind, int]


def at(second: int) -> datetime:
    return NOON + timedelta(seconds=second)


def place(entry: HistoryEntry) -> Place:
    return type(entry.event), entry.event.id


def taken_at(times: Sequence[int]) -> list[PaymentEvent]:
    blank = PaymentEvent._make([None] * len(PaymentEvent._fields))
    return [blank._replace(id=n, created_at=at(time)) for n, time in enumerate(times, start=1)]


def refused_at(times: Sequence[int]) -> list[RefusedEvent]:
    blank = RefusedEvent._make([None] * len(RefusedEvent._fields))
    events = [blank._replace(id=n, first_refused_at=at(t)) for n, t in enumerate(times, start=1)]
    return sorted(events, key=lambda each: (each.first_refused_at, each.id))


def expected(taken: Sequence[int], refused: Sequence[int]) -> list[Place]:
    """Return what the places are by definition, for the times of all events by id."""
    left = sorted((time, n) for n, time in enumerate(refused, start=1))
    found: list[Place] = []
    for number, time in enumerate(taken, start=1):
        earlier = [n for refused_at, n in left if refused_at < time]
        left = left[len(earlier) :]
        found += [(RefusedEvent, n) for n in earlier] + [(PaymentEvent, number)]
    return found + [(RefusedEvent, n) for _, n in left]


# Few of them, so that many are equal; and in any order, as a clock that is set back has them.
times = st.lists(st.integers(0, 5), max_size=12)


@given(taken=times, refused=times)
def test_the_order_of_both(taken: list[int], refused: list[int]) -> None:
    entries = list(merged(taken_at(taken), refused_at(refused), START))
    assert list(map(place, entries)) == expected(taken, refused)
    for entry in entries:
        key = entry.key
        assert entry.event.id == (
            key.event_id if isinstance(entry.event, PaymentEvent) else key.refused_id
        )


@given(taken=times, refused=times)
def test_times_in_order_are_sorted(taken: list[int], refused: list[int]) -> None:
    entries = merged(taken_at(sorted(taken)), refused_at(refused), START)
    found = [
        each.event.created_at
        if isinstance(each.event, PaymentEvent)
        else each.event.first_refused_at
        for each in entries
    ]
    assert found == sorted(found)


def take(connection: psycopg.Connection[Any], order_id: int, second: int) -> None:
    connection.execute(
        "INSERT INTO order_payment_events (order_id, storefront_id, created_at,"
        " payment_status_after) VALUES (%s, 1, %s, 'paid')",
        (order_id, at(second)),
    )


def refuse(connection: psycopg.Connection[Any], order_id: int, second: int) -> None:
    connection.execute(
        "INSERT INTO refused_payment_events (order_id, storefront_id, first_refused_at, digest,"
        " written, tells_of_money, reason, request_id)"
        " VALUES (%s, 1, %s, gen_random_uuid(), false, false, 'PAYMENT_DUPLICATE', 'r')",
        (order_id, at(second)),
    )


async def walk(database: Database, order_id: int, sizes: Sequence[int]) -> list[HistoryEntry]:
    """Return the history in pages of these sizes, repeated."""
    history, after = PaymentHistory(database), None
    found: list[HistoryEntry] = []
    for size in cycle(sizes):
        page = (await history.list_with_refused(order_id, size, after))[:size]
        found += page
        if len(page) < size:
            return found
        after = page[-1].key
    raise AssertionError("it has an end")


@pytest.mark.anyio
async def test_pages_of_any_size_make_up_the_history(database_url: str) -> None:
    random = Random(21)
    async with databases.pool(database_url, max_connections=1) as database:
        for order_id in range(1, 13):
            taken, refused = (
                [random.randint(0, 9) for _ in range(random.randint(0, 9))] for _ in range(2)
            )
            with connect(database_url) as connection:
                for add, times in ((take, taken), (refuse, refused)):
                    for second in times:
                        add(connection, order_id, second)
            whole = await walk(database, order_id, [100])
            ids = {
                kind: sorted(id_ for of, id_ in map(place, whole) if of is kind)
                for kind in (PaymentEvent, RefusedEvent)
            }
            numbered = [(kind, 1 + ids[kind].index(id_)) for kind, id_ in map(place, whole)]
            assert numbered == expected(taken, refused)
            for sizes in ([1], [2], [3, 1], [5]):
                assert await walk(database, order_id, sizes) == whole


@pytest.mark.anyio
async def test_events_between_two_pages(database_url: str) -> None:
    """What is added behind the last entry of a page is on those that follow, once."""
    async with databases.pool(database_url, max_connections=1) as database:
        history, found, key = PaymentHistory(database), [], START
        with connect(database_url) as connection:
            take(connection, 1, 1)
            refuse(connection, 1, 2)
            for add, second in ((take, 3), (refuse, 4), (refuse, 4), (take, 3), (take, 2)):
                entry, *_ = await history.list_with_refused(1, 1, key)
                found.append(entry)
                key = entry.key
                add(connection, 1, second)
        found += await history.list_with_refused(1, 100, key)
    kinds = "".join("T" if isinstance(each.event, PaymentEvent) else "R" for each in found)
    assert kinds == "TRTRTTR"
    assert len(set(map(place, found))) == len(found)
