"""All times that PostgreSQL has, in microseconds since 2000, for tests."""

from datetime import UTC, datetime, timedelta
from typing import Final

from hypothesis import strategies as st

MINUS_INFINITY, INFINITY = -(2**63), 2**63 - 1
FIRST, LAST = -211_813_488_000_000_000, 9_223_371_331_199_999_999

_EPOCH: Final = datetime(2000, 1, 1)
_MICROSECOND: Final = timedelta(microseconds=1)
_CYCLE: Final = timedelta(days=146_097) // _MICROSECOND
"""After these 400 years, the calendar repeats."""

FIRST_SHOWN: Final = (datetime.min - _EPOCH) // _MICROSECOND
LAST_SHOWN: Final = (datetime.max - _EPOCH) // _MICROSECOND

EDGES: Final = (
    *(MINUS_INFINITY, FIRST, FIRST_SHOWN - 1, FIRST_SHOWN),
    *(LAST_SHOWN, LAST_SHOWN + 1, LAST, INFINITY),
    # The last one that has a number since 1970 in 64 bits, and the next one.
    *(2**63 - 1 - 946_684_800_000_000, 2**63 - 946_684_800_000_000),
)

moments: Final = st.sampled_from(EDGES) | st.integers(FIRST, LAST)
"""Any time, and often one that is special."""


def text(microseconds: int) -> str:
    """Return a time as PostgreSQL reads it."""
    if microseconds in (MINUS_INFINITY, INFINITY):
        return "infinity" if microseconds > 0 else "-infinity"
    cycles, rest = divmod(microseconds, _CYCLE)
    time = _EPOCH + rest * _MICROSECOND
    year = time.year + 400 * cycles
    number, era = (year, "") if year > 0 else (1 - year, " BC")
    return f"{number:04}-{time:%m-%d %H:%M:%S.%f}+00{era}"


def shown(microseconds: int) -> datetime:
    """Return the nearest time that a response can tell."""
    nearest = min(max(microseconds, FIRST_SHOWN), LAST_SHOWN)
    return (_EPOCH + nearest * _MICROSECOND).replace(tzinfo=UTC)
