"""Times of PostgreSQL in Python."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistence.timestamps import ClampedTime, microseconds_of, time_at
from tests.support import databases, far_times

pytestmark = pytest.mark.anyio


@given(microseconds=far_times.moments)
def test_a_time_is_shown_as_the_nearest_one_and_stays_exact(microseconds: int) -> None:
    time = time_at(microseconds)

    assert time == far_times.shown(microseconds)
    assert time.tzinfo is UTC
    assert microseconds_of(time) == microseconds
    is_shown = far_times.FIRST_SHOWN <= microseconds <= far_times.LAST_SHOWN
    assert isinstance(time, ClampedTime) is not is_shown


@given(microseconds=st.integers())
def test_beyond_the_times_of_postgresql_it_is_infinite(microseconds: int) -> None:
    expected = microseconds
    if not far_times.FIRST <= microseconds <= far_times.LAST:
        expected = far_times.INFINITY if microseconds > 0 else far_times.MINUS_INFINITY

    assert microseconds_of(time_at(microseconds)) == expected


@given(
    time=st.datetimes(
        max_value=datetime(9999, 12, 31), timezones=st.just(timezone(timedelta(hours=-12)))
    )
)
def test_times_of_another_zone(time: datetime) -> None:
    assert time_at(microseconds_of(time)) - time == timedelta()


async def test_each_goes_to_postgresql_and_back(database_url: str) -> None:
    """By each of the ways in which a statement runs, also in an array."""
    texts = [far_times.text(each) for each in far_times.EDGES]
    times = [time_at(each) for each in far_times.EDGES]
    exact = list(far_times.EDGES)
    same = "SELECT given, given = CAST(wanted AS timestamptz) FROM unnest({}) AS _(given, wanted)"
    by_number = same.format("$1::timestamptz[], $2::text[]")
    by_name = same.format("CAST(:given AS timestamptz[]), CAST(:wanted AS text[])")
    async with databases.pool(database_url) as database:
        numbered = await database.fetch(by_number, times, texts)
        named = await database.fetch_all(by_name, {"given": times, "wanted": texts})
        single = [
            await database.fetch_one(
                "SELECT CAST(:given AS timestamptz) = CAST(CAST(:wanted AS text) AS timestamptz)"
                " AS is_same",
                {"given": time, "wanted": text},
            )
            for time, text in zip(times, texts, strict=True)
        ]
    for rows in ([tuple(each) for each in numbered], [tuple(each.values()) for each in named]):
        assert [(microseconds_of(time), is_same) for time, is_same in rows] == [
            (each, True) for each in exact
        ]
    assert [each and each["is_same"] for each in single] == [True] * len(exact)
