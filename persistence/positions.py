"""Positions in the history of payments: up to where a reader has read it.

The ids of events cannot tell: of two concurrent updates, the one with the lower id may be committed
later. A ``pg_snapshot`` can: it says of each transaction whether it was committed by then. Between
two snapshots lies what was committed in the meantime, neither more nor less, and reading it waits
for no transaction to end.

A snapshot includes transactions that left nothing behind, not even on disk. After a crash,
PostgreSQL assigns their ids again, and the events of the new transactions would count as read. So
the snapshot of a position ends with the transaction of the last event: all before it is on disk.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from persistence.errors import InvalidPosition

_MAX_IN_PROGRESS: Final = 5_000  # transactions: more than a server has connections
_END_OF_BIGINT: Final = 2**63


class Snapshot(NamedTuple):
    """A ``pg_snapshot``: transactions below ``xmin`` had ended, those from ``xmax`` not yet begun.

    Of those between the two, ``in_progress``, in ascending order, had not ended. See
    https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT-PARTS.
    """

    xmin: int
    xmax: int
    in_progress: tuple[int, ...]

    def before(self, end: int) -> Self:
        """Return the snapshot without the transactions from ``end`` on."""
        end = min(self.xmax, end)
        in_progress = tuple(each for each in self.in_progress if each < end)
        return self._replace(xmin=min(self.xmin, end), xmax=end, in_progress=in_progress)

    def __str__(self) -> str:
        """Return the snapshot as PostgreSQL writes it."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.in_progress))}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the snapshot that PostgreSQL writes as ``text``. Raises ValueError."""
        xmin, xmax, in_progress = text.split(":")
        numbers = in_progress.split(",", _MAX_IN_PROGRESS) if in_progress else []
        snapshot = cls(_number(xmin), _number(xmax), tuple(map(_number, numbers)))
        ascending = (1, snapshot.xmin, *snapshot.in_progress)
        # What PostgreSQL requires of a pg_snapshot.
        if list(ascending) != sorted(ascending) or len(set(numbers)) != len(numbers):
            raise ValueError("the transactions are not in ascending order")
        if snapshot.xmax < snapshot.xmin or any(n >= snapshot.xmax for n in snapshot.in_progress):
            raise ValueError("the snapshot ends before it begins")
        return snapshot


@dataclass(frozen=True)
class Position:
    """Up to where the history was read: everything visible in ``seen``.

    On the way from there to ``reaching``, also the events with ids up to ``last_id``.
    """

    seen: Snapshot
    reaching: Snapshot | None = None
    last_id: int = 0

    def __str__(self) -> str:
        """Return the position as an opaque text."""
        parts = [str(self.seen)]
        if self.reaching is not None:
            parts += [str(self.reaching), str(self.last_id)]
        return base64.urlsafe_b64encode(" ".join(parts).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position that ``str`` returned ``text`` for. Raises InvalidPosition."""
        try:
            padded = text + "=" * (-len(text) % 4)
            seen, *rest = base64.b64decode(padded, b"-_", validate=True).decode("ascii").split(" ")
            if not rest:
                return cls(Snapshot.parse(seen))
            reaching, last_id = rest
            return cls(Snapshot.parse(seen), Snapshot.parse(reaching), _number(last_id))
        except (ValueError, binascii.Error) as error:
            raise InvalidPosition("this is not a position in the history of payments") from error


def _number(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and len(text) < 20 and int(text) < _END_OF_BIGINT):
        raise ValueError("this is not the id of a transaction or an event")
    return int(text)
