"""Statements that are under way at the same time, sent together: one round trip, one commit.

Most of what an update costs is not the update: a round trip, tasks that wait for it, a transaction,
its commit. With 32 calls at a time, sending them together takes a third off the service's CPU and
half of PostgreSQL's (see ``benchmarks/RESULTS.md``). Nobody waits in order to share:
what comes while only a few are under way goes at once, and what comes meanwhile goes together.

No caller can tell, except by speed:

- A statement that goes alone runs in its caller's own task.
- A batch is one transaction. When PostgreSQL refuses one of its statements, none of them is made,
  and each of them runs by itself, and has its own error.
- Nobody waits behind somebody else's lock: in a batch, a statement waits for one no longer than
  ``queries.PATIENCE``. Nor does the next batch wait for one that takes longer.
- Each keeps its time. Who goes away before their statement is sent is forgotten; a statement that
  has been sent with others is made all the same, as one whose cancel comes too late always was.
- A statement that its caller has left does not overwrite what came after it: the next one about
  that row waits until PostgreSQL is done with it.
- Of a row, there is one statement in a batch, and a batch takes its locks in the order of ids, so
  that no two of them wait for each other.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from persistence.database import Database
from persistence.errors import RolledBack

# As long as fewer statements are under way, of all processes together, others may depart. With a
# lower limit, calls would wait for each other's commit where there is little to do; with a higher,
# batches would be small where there is much.
_FEW: Final = 4

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

    def __init__(self, database: Database, *, together: bool = True, processes: int = 1) -> None:
        """One of as many ``processes`` that do the same. Without ``together``, each goes alone."""
        self._database = database
        self._few = max(1, _FEW // processes) if together else sys.maxsize
        self._most = _MOST if together else 1
        self._waiting: dict[BatchedStatement, list[_Waiting]] = {}
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: Counter[int] = Counter()
        """How many statements about a row PostgreSQL may still make, whose callers have left."""

    async def fetch_row(self, statement: BatchedStatement, row_id: int, *args: object) -> _Row:
        """Run ``statement`` as ``Database.fetchrow`` does."""
        turn: _Turn | None
        if not self._waiting and self._under_way < self._few and row_id not in self._left:
            turn = _Turn(self, 1)
        else:
            waiting = _Waiting(row_id, (row_id, *args))
            self._waiting.setdefault(statement, []).append(waiting)
            self._depart()
            try:
                outcome = await waiting.outcome
            except asyncio.CancelledError:
                if waiting.batch is not None:
                    self._leave(waiting.batch, row_id)
                waiting.give_back()
                raise
            if not isinstance(outcome, _Alone):
                return outcome
            turn = outcome.turn
        try:
            return await self._database.fetchrow(
                statement.alone, row_id, *args, on_cancel=partial(self._leave, row_id=row_id)
            )
        finally:
            if turn is not None:
                turn.end()

    def _depart(self) -> None:
        """Send what waits and can go, while only a few are under way."""
        for statement in list(self._waiting):
            if self._under_way >= self._few:
                return
            batch = self._board(statement)
            if len(batch) == 1:
                batch[0].end(_Alone(_Turn(self, 1)))
            elif batch:
                run = self._run(statement.together, batch, _Turn(self, len(batch)))
                task = asyncio.create_task(run, context=Context())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                for each in batch:
                    each.batch = task

    def _board(self, statement: BatchedStatement) -> "list[_Waiting]":
        """Take those out that go now, sorted by id. They are about a row each."""
        boarding: dict[int, _Waiting] = {}
        staying = []
        for each in self._waiting.pop(statement):
            if each.has_left:
                continue
            if (
                len(boarding) < self._most
                and each.row_id not in boarding
                and each.row_id not in self._left
            ):
                boarding[each.row_id] = each
            else:
                staying.append(each)
        if staying:
            self._waiting[statement] = staying  # behind those of other statements
        return [boarding[row_id] for row_id in sorted(boarding)]

    async def _run(self, sql: str, batch: "list[_Waiting]", turn: "_Turn") -> None:
        def abandoned(release: asyncio.Task[None]) -> None:
            for each in batch:
                self._leave(release, each.row_id)

        try:
            rows = await self._database.fetchmany(sql, _Parameters(batch), on_cancel=abandoned)
        except RolledBack:
            for each in batch:
                each.end(_Alone())
        except Exception as error:
            for each in batch:
                each.fail(error)
        else:
            found = {row[0]: row for row in rows}
            for each in batch:
                each.end(found.get(each.row_id))
        finally:
            turn.end()

    def _leave(self, rest: "asyncio.Task[None]", row_id: int) -> None:
        """Keep others about that row from going until ``rest`` has ended."""
        self._left[row_id] += 1
        rest.add_done_callback(partial(self._come_to_rest, row_id), context=Context())

    def _come_to_rest(self, row_id: int, _rest: "asyncio.Task[None]") -> None:
        self._left[row_id] -= 1
        if not self._left[row_id]:
            del self._left[row_id]
        self._depart()


class _Alone(NamedTuple):
    """A statement is to be run by its caller, who has the ``turn`` if there is one."""

    turn: "_Turn | None" = None


class _Waiting:
    """A statement whose caller waits for what becomes of it, in ``batch`` once it has departed."""

    def __init__(self, row_id: int, args: Sequence[object]) -> None:
        self.row_id = row_id
        self.args = args
        self.outcome: asyncio.Future[_Row | _Alone] = asyncio.get_running_loop().create_future()
        self.batch: asyncio.Task[None] | None = None

    @property
    def has_left(self) -> bool:
        return self.outcome.done()

    def give_back(self) -> None:
        """End a turn that has come too late. There may be none, and no outcome either."""
        if not self.outcome.cancelled() and self.outcome.exception() is None:
            outcome = self.outcome.result()
            if isinstance(outcome, _Alone) and outcome.turn is not None:
                outcome.turn.end()

    def end(self, outcome: "_Row | _Alone") -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class _Parameters:
    """Those of a batch, without those of callers who have left before it is sent."""

    def __init__(self, batch: list[_Waiting]) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[Sequence[object]]:
        return (each.args for each in self._batch if not each.has_left)


class _Turn:
    """What ``size`` statements have from their departure to their end, but not for long."""

    def __init__(self, batches: Batches, size: int) -> None:
        self._batches: Batches | None = batches
        self._size = size
        self._timer = asyncio.get_running_loop().call_later(_TURN, self.end, context=Context())
        batches._under_way += size

    def end(self) -> None:
        """Let the next batch depart."""
        self._timer.cancel()
        if self._batches is not None:
            batches, self._batches = self._batches, None
            batches._under_way -= self._size
            batches._depart()
