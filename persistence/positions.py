"""Positions in the history of payments: up to where a reader has read it.

The ids of events cannot tell: of two concurrent updates, the one with the lower id may be committed
later. A ``pg_snapshot`` can: it says of each transaction whether it was committed by then. Between
two snapshots lies what was committed in the meantime, neither more nor less, and reading it waits
for no transaction to end.

A snapshot includes transactions that left nothing behind, not even on disk. After a crash or a
fail-over, PostgreSQL assigns their ids again, and the events of the new transactions would count as
read. So the snapshot of a position ends with the transaction of the last event, taken or refused:
a server that has this event assigns none of the ids before it.

A server may not have it: a standby took over that lacked the last commits, or a backup was
restored. So a position has a mark of what it has seen:

- a hash of the cluster's system identifier and of the epoch of its history;
- a hash of the events that were committed last: those between the snapshot of the position and the
  one that the process took before. What is lost is the end of the WAL. Whatever it was, the event
  that committed last is lost with it, also if its transaction began before others.

Not noticed is the loss of: events in a stretch of more than 500, where the 500 with the highest
transactions are still there; of a refused event that is not the last one; and, by the positions of
a process's first watch, of events whose transaction began before those of 500 others that are
still there. Nor that of events that became visible before others with which they were read, and
were written to the WAL after them: the order of the two may differ, and the standby that was
promoted may have the WAL in between. Each needs a loss that ends within one reading of the history,
which takes some milliseconds.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final, NamedTuple, Self

from persistence.errors import InvalidPosition

_MAX_IN_PROGRESS: Final = 5_000  # transactions: more than a server has connections
_END_OF_BIGINT: Final = 2**63
_LOW_BITS: Final = 2**32  # of the id of a transaction

_END_OF_HASHES: Final = 2**64

# Of a position's numbers, in hexadecimal. Those of the version before are base64, which has none.
_SEPARATOR: Final = "."
_NUMBERS: Final = re.compile(r"[0-9a-f]{1,16}(\.[0-9a-f]{1,16})*")


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
        # No transaction has an id of which these bits are 0, nor a snapshot such an end.
        end = min(self.xmax, end + (end % _LOW_BITS == 0))
        in_progress = tuple(each for each in self.in_progress if each < end)
        return self._replace(xmin=min(self.xmin, end), xmax=end, in_progress=in_progress)

    @property
    def last(self) -> int:
        """The last transaction that may have ended by the snapshot; 0 for ``ORIGIN``."""
        last = self.xmax - 1
        return last - 1 if last and last % _LOW_BITS == 0 else last

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the snapshot that PostgreSQL writes as ``text``. Raises ValueError."""
        xmin, xmax, in_progress = text.split(":")
        numbers = in_progress.split(",", _MAX_IN_PROGRESS) if in_progress else []
        return cls(_number(xmin), _number(xmax), tuple(map(_number, numbers))).checked()

    def checked(self) -> Self:
        """Return the snapshot. Raises ValueError for what PostgreSQL takes for none."""
        if not (
            self.xmin <= self.xmax < _END_OF_BIGINT
            and self.xmin % _LOW_BITS
            and self.xmax % _LOW_BITS
        ):
            raise ValueError("the snapshot ends before it begins, or has no end")
        if any(later <= earlier for earlier, later in pairwise(self.in_progress)):
            raise ValueError("the transactions are not in ascending order")
        if any(not self.xmin <= each < self.xmax for each in self.in_progress):
            raise ValueError("a transaction in progress is not in the snapshot")
        return self

    def numbers(self) -> list[int]:
        """Return the snapshot as small numbers; ``of_numbers`` makes a snapshot of them."""
        edges = (self.xmin, *self.in_progress)
        steps = [later - earlier for earlier, later in pairwise(edges)]
        return [self.xmin, self.xmax - self.xmin, len(steps), *steps]

    @classmethod
    def of_numbers(cls, numbers: Iterator[int]) -> Self:
        """Take from ``numbers`` those of one snapshot, and return it. Raises ValueError."""
        xmin, length, count = (_next(numbers) for _ in range(3))
        if count > _MAX_IN_PROGRESS:
            raise ValueError("there are too many transactions in progress")
        in_progress, last = [], xmin
        for _ in range(count):
            last += _next(numbers)
            in_progress.append(last)
        return cls(xmin, xmin + length, tuple(in_progress)).checked()


ORIGIN: Final = Snapshot(1, 1, ())
"""Before the first transaction."""


class Mark(NamedTuple):
    """What a position has seen, to find out whether that is still in the history."""

    ledger: int
    """A hash, signed, of the system identifier and of the epoch."""
    since: Snapshot
    events: int
    """A hash, signed, of the events after ``since``, up to where the position leads; 0: none."""


@dataclass(frozen=True)
class Position:
    """Up to where the history was read: everything visible in ``seen``.

    On the way from there to ``reaching``, also the events with ids up to ``last_id``, and the
    refused ones with ids up to ``last_refused_id``; 0 where none was read.
    """

    seen: Snapshot
    reaching: Snapshot | None = None
    last_id: int = 0
    last_refused_id: int = 0
    mark: Mark | None = None
    """None in a position that the version before has handed out."""

    @property
    def end(self) -> Snapshot:
        """Where the position leads: the snapshot of its mark."""
        return self.reaching or self.seen

    def __str__(self) -> str:
        """Return the position, which has a mark, as an opaque text."""
        assert self.mark is not None  # noqa: S101 - PaymentHistory.checked gives it one
        hashes = (each % _END_OF_HASHES for each in (self.mark.ledger, self.mark.events))
        numbers = [*hashes, *self.seen.numbers(), *self.mark.since.numbers()]
        if self.reaching is not None:
            numbers += [*self.reaching.numbers(), self.last_id]
            numbers += [self.last_refused_id] if self.last_refused_id else []
        return _SEPARATOR.join([f"{each:x}" for each in numbers])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position that ``str`` returned ``text`` for. Raises InvalidPosition."""
        try:
            return cls._marked(text) if _SEPARATOR in text else cls._unmarked(text)
        except (ValueError, binascii.Error) as error:
            raise InvalidPosition("this is not a position in the history of payments") from error

    @classmethod
    def _marked(cls, text: str) -> Self:
        if not _NUMBERS.fullmatch(text):
            raise ValueError("these are not numbers")
        numbers = iter([int(each, 16) for each in text.split(_SEPARATOR)])
        ledger, events = (_signed(_next(numbers)) for _ in range(2))
        seen, since = Snapshot.of_numbers(numbers), Snapshot.of_numbers(numbers)
        mark = Mark(ledger, since, events)
        if (first := next(numbers, None)) is None:
            return cls(seen, mark=mark)
        reaching = Snapshot.of_numbers(chain([first], numbers))
        last_id, last_refused_id = _next(numbers), next(numbers, 0)
        if max(last_id, last_refused_id) >= _END_OF_BIGINT or next(numbers, None) is not None:
            raise ValueError("the position does not end with the ids of two events")
        return cls(seen, reaching, last_id, last_refused_id, mark)

    @classmethod
    def _unmarked(cls, text: str) -> Self:
        """Return the position that the version before has written as ``text``."""
        data = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
        seen, *rest = data.decode("ascii").split(" ")
        if not rest:
            return cls(Snapshot.parse(seen))
        reaching, last_id = rest
        return cls(Snapshot.parse(seen), Snapshot.parse(reaching), _number(last_id))


def _signed(number: int) -> int:
    return number - _END_OF_HASHES if number >= _END_OF_BIGINT else number


def _next(numbers: Iterator[int]) -> int:
    number = next(numbers, None)
    if number is None:
        raise ValueError("the snapshot is cut off")
    return number


def _number(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and len(text) < 20 and int(text) < _END_OF_BIGINT):
        raise ValueError("this is not the id of a transaction or an event")
    return int(text)
