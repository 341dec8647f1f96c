"""Statements that are under way at the same time, sent together: one round trip, one commit.

Most of what an update costs is not the update: a round trip, tasks that wait for it, a transaction,
its commit. Measured with 32 calls at a time, together they take 0.6 of the service's time for the
database and 0.4 of PostgreSQL's (see ``benchmarks/RESULTS.md``). Nobody waits in order to share:
what comes while there is a turn free goes at once, and what comes meanwhile goes together.

No caller can tell, except by speed:

- A statement that nobody shares a turn with runs in its caller's own task.
- A batch is one transaction. When PostgreSQL refuses one of its statements, none of them is made,
  and each of them runs by itself, and has its own error.
- Nobody waits behind somebody else's lock: in a batch, a statement waits for one no longer than
  ``queries.PATIENCE``. Nor does the next batch wait for one that takes longer.
- A caller who goes away is forgotten, or their statement is made all the same, as one whose cancel
  comes too late always was. The others in the batch keep their time.
- Of an order, there is one update in a batch, and a batch takes its locks in the order of ids, so
  that no two of them wait for each other.
"""

import asyncio
from collections.abc import Sequence
from contextvars import Context
from typing import Any, Final, NamedTuple, TypeAlias

from persistence.database import Database
from persistence.errors import PersistenceError, RolledBack

# Batches on their way at a time. With two, they are half as large, and so is what is saved.
_AT_ONCE: Final = 1

# Statements in a batch. More would save little, and where each of them waits for a slow disk, they
# wait one after the other.
_MOST: Final = 16

_TURN: Final = 0.01  # seconds, after which the next batch does not wait for this one any more

_Row: TypeAlias = Sequence[Any] | None


class BatchedStatement(NamedTuple):
    """A statement about one row, whose id is its first parameter and the first column it returns.

    ``together`` does the same as ``alone``, and gives up where it would have to wait for a lock.
    """

    alone: str
    together: str


class Batches:
    """Runs statements, together where they come together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[BatchedStatement, list[_Waiting]] = {}
        self._under_way = 0
        self._is_due = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch_row(self, statement: BatchedStatement, row_id: int, *args: object) -> _Row:
        """Run ``statement`` as ``Database.fetch_row`` does."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(row_id, (row_id, *args), loop.create_future())
        self._waiting.setdefault(statement, []).append(waiting)
        if not self._is_due and self._under_way < _AT_ONCE:
            # Not now: what came in with the same read from a socket can go along.
            self._is_due = True
            loop.call_soon(self._depart, context=Context())
        outcome = await waiting.outcome
        if not isinstance(outcome, _Alone):
            return outcome
        try:
            return await self._database.fetch_row(statement.alone, row_id, *args)
        finally:
            if outcome.turn:
                outcome.turn.end()

    def _depart(self) -> None:
        """Send what waits, in as many batches as have a turn."""
        self._is_due = False
        while self._waiting and self._under_way < _AT_ONCE:
            statement = next(iter(self._waiting))
            batch = self._board(statement)
            if len(batch) == 1:
                batch[0].outcome.set_result(_Alone(_Turn(self)))
            elif batch:
                run = self._run(statement.together, batch, _Turn(self))
                task = asyncio.create_task(run, context=Context())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _board(self, statement: BatchedStatement) -> "list[_Waiting]":
        """Take those out that go now, sorted by id. They are about a row each."""
        boarding: dict[int, _Waiting] = {}
        left = []
        for each in self._waiting.pop(statement):
            if each.outcome.done():  # its caller has gone
                continue
            if len(boarding) < _MOST and each.row_id not in boarding:
                boarding[each.row_id] = each
            else:
                left.append(each)
        if left:
            self._waiting[statement] = left  # behind those of other statements
        return [boarding[row_id] for row_id in sorted(boarding)]

    async def _run(self, sql: str, batch: "list[_Waiting]", turn: "_Turn") -> None:
        try:
            rows = await self._database.fetch_each(sql, [each.args for each in batch])
        except RolledBack:
            for each in batch:
                each.end(_Alone())
        except PersistenceError as error:
            for each in batch:
                each.fail(error)
        else:
            found = {row[0]: row for row in rows}
            for each in batch:
                each.end(found.get(each.row_id))
        finally:
            turn.end()


class _Alone(NamedTuple):
    """A statement is to be run by its caller, who has the ``turn`` if there is one."""

    turn: "_Turn | None" = None


class _Waiting(NamedTuple):
    """A statement whose caller waits for what becomes of it."""

    row_id: int
    args: Sequence[object]
    outcome: "asyncio.Future[_Row | _Alone]"

    def end(self, outcome: "_Row | _Alone") -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def fail(self, error: PersistenceError) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class _Turn:
    """What a batch has from its departure to its end, but not for long."""

    def __init__(self, batches: Batches) -> None:
        self._batches: Batches | None = batches
        self._timer = asyncio.get_running_loop().call_later(_TURN, self.end, context=Context())
        batches._under_way += 1

    def end(self) -> None:
        """Let the next batch depart."""
        self._timer.cancel()
        if self._batches is not None:
            batches, self._batches = self._batches, None
            batches._under_way -= 1
            batches._depart()
