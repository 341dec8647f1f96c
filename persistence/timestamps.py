"""PostgreSQL's times as Python's.

A ``timestamptz`` is a number of microseconds, from 4713 BC to 294276 AD, or infinite. A
``datetime`` goes from year 1 to 9999, as a Timestamp of protobuf does. A time beyond these becomes
a ``ClampedTime``: it is shown, compared and sorted as the nearest one that there is, and goes back
to PostgreSQL as what it was.

Works around asyncpg, which has an OverflowError for such a time, and a datetime without a time zone
for one that is infinite.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""From which PostgreSQL counts."""

SINCE_1970: Final = 946_684_800_000_000
"""Microseconds from 1970 to ``EPOCH``."""

INFINITY: Final = 2**63 - 1
MINUS_INFINITY: Final = -(2**63)
_FIRST: Final = -211_813_488_000_000_000
_END: Final = 9_223_371_331_200_000_000


class ClampedTime(datetime):
    """A time that ``datetime`` cannot hold, as the nearest one that it can, in UTC."""

    microseconds: int
    """The exact time, as ``microseconds_of`` returns it."""


def microseconds_of(time: datetime) -> int:
    """Return an aware time as PostgreSQL has it: in microseconds since ``EPOCH``, or infinite."""
    if isinstance(time, ClampedTime):
        return time.microseconds
    since = time - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def time_at(microseconds: int) -> datetime:
    """Return the time that ``microseconds_of`` returns this for.

    Beyond PostgreSQL's times, it is an infinite one.
    """
    try:
        return EPOCH + timedelta(0, 0, microseconds)
    except OverflowError:
        return _clamped(microseconds)


async def set_codec(connection: "asyncpg.Connection[Any]") -> None:
    """Have the times of a connection's statements read and written by this module.

    It makes no round trip, and reads a value in the time that asyncpg's own codec takes.
    """
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=_encode,
        decoder=_decode,
        format="tuple",
    )


def _encode(time: datetime) -> tuple[int]:
    return (microseconds_of(time),)


def _decode(value: tuple[int]) -> datetime:
    return time_at(value[0])


def _clamped(microseconds: int) -> ClampedTime:
    if not _FIRST <= microseconds < _END:
        microseconds = INFINITY if microseconds > 0 else MINUS_INFINITY
    nearest = datetime.max if microseconds > 0 else datetime.min
    time = ClampedTime.combine(nearest.date(), nearest.time(), UTC)
    time.microseconds = microseconds
    return time
