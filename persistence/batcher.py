"""Batches statements that are in flight at the same time: one round trip and one commit for all.

Most of what an update costs is not the update: a round trip, tasks that wait for it, a transaction,
its commit. With 32 calls at a time, batches take a third off the service's CPU and half of
PostgreSQL's (see ``benchmarks/RESULTS.md``). No statement waits in order to be batched: it starts
at once while there is a free slot; those that arrive while there is none start in one batch.

The life of a statement::

    fetchrow ──┬── slot free ─────────────────▶ single ─────▶ done
               │                                ▲    ▲
               └──▶ queued ──┬── one waits ─────┘    │ rolled back
                             │                       │
                             └── several wait ──▶ batched ──▶ done

========  ============================  ===================  ====================================
state     runs in                       waits for a lock     when its caller cancels
========  ============================  ===================  ====================================
queued    no task yet                   does not lock        it is dropped
single    the caller's task, a          as long as the       PostgreSQL cancels it
          transaction of its own        statement may take
batched   the batch's task, one         ``LOCK_TIMEOUT``     it is left out, while the batch has
          transaction for all                                no connection; then it is executed
========  ============================  ===================  ====================================

Callers see no difference, except in speed:

- When PostgreSQL rejects one statement of a batch, it rolls all of them back. Each then runs as a
  single one, and has its own error.
- A statement that waits for a lock does not hold others up: a batch waits no longer than
  ``update_statement.LOCK_TIMEOUT``, and after 10 ms, a single statement or a batch gives its
  slots back.
- A cancelled statement does not overwrite a later one: statements about its row stay queued until
  PostgreSQL is done with it.
- A batch has one statement about a row, and takes its locks in the order of ids, so that two
  batches do not deadlock.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from persistence.database import Database
from persistence.errors import RolledBack

_MAX_IN_FLIGHT: Final = 4
"""Slots, of all processes together. A statement takes one.

With fewer, statements would wait for each other's commit where there is little to do; with more,
batches would be small where there is much.
"""

_MAX_BATCHES: Final = 1
"""How many full batches of a process may be in flight, each on a connection of its own.

A batch takes no more than this part of the process's slots.
"""

_MAX_BATCH: Final = 16
"""Statements in a batch.

With more, little would be saved. Where each of them waits for a slow disk, they wait in a row.
"""

_SLOT_SECONDS: Final = 0.01  # after which a statement that has not ended gives its slot back

_Row: TypeAlias = Sequence[Any] | None

BatchSpan: TypeAlias = Callable[[Sequence[Context]], AbstractContextManager[object]]
"""Returns what a batch runs within, given the contexts in which its statements were called."""


class BatchedStatement(NamedTuple):
    """A statement about one row, whose id is its first parameter and the first column it returns.

    ``batched`` does the same as ``single``, and fails where it would have to wait for a lock.
    """

    single: str
    batched: str


class Batcher:
    """Runs statements: one by one while few are in flight, else in batches."""

    def __init__(
        self, database: Database, *, processes: int = 1, batch_span: BatchSpan = nullcontext
    ) -> None:
        """Share the slots equally with the other ``processes``; each process has at least one.

        Each batch runs within ``batch_span``.
        """
        self._database = database
        self._batch_span = batch_span
        self._max_in_flight = max(1, _MAX_IN_FLIGHT // processes)
        self._slots_of_batch = max(1, self._max_in_flight // _MAX_BATCHES)
        self._in_flight = 0
        self._queues: dict[BatchedStatement, list[_Queued]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held_rows: Counter[int] = Counter()
        """How many cancelled statements about a row PostgreSQL may still execute, by its id."""

    async def fetchrow(self, statement: BatchedStatement, row_id: int, *args: object) -> _Row:
        """Run ``statement`` as ``Database.fetchrow`` does, and raise what that raises."""
        slots: _Slots | None
        if not self._queues and self._has_slot and row_id not in self._held_rows:
            slots = _Slots(self, 1)
        else:
            queued = _Queued(row_id, (row_id, *args))
            self._queues.setdefault(statement, []).append(queued)
            self._start_queued()
            try:
                result = await queued.result
            except asyncio.CancelledError:
                if queued.batch is not None:
                    self._hold(row_id, queued.batch)
                if queued.slots is not None:
                    queued.slots.release()
                raise
            if not isinstance(result, _RunSingle):
                return result
            slots = queued.slots
        try:
            return await self._database.fetchrow(
                statement.single, row_id, *args, on_cancel=partial(self._hold, row_id)
            )
        finally:
            if slots is not None:
                slots.release()

    @property
    def _has_slot(self) -> bool:
        return self._in_flight < self._max_in_flight

    def _start_queued(self) -> None:
        """Start queued statements while a slot is free: one batch for each SQL text."""
        for statement in list(self._queues):
            if not self._has_slot:
                return
            batch = self._dequeue(statement)
            if len(batch) == 1:
                batch[0].start_single(_Slots(self, 1))
            elif batch:
                self._start_batch(statement.batched, batch)

    def _dequeue(self, statement: BatchedStatement) -> "list[_Queued]":
        """Take those out of the queue that can start now. Return them by id, one for each row."""
        starting: dict[int, _Queued] = {}
        remaining = []
        for queued in self._queues.pop(statement):
            if queued.result.cancelled():
                continue
            if (
                len(starting) < _MAX_BATCH
                and queued.row_id not in starting
                and queued.row_id not in self._held_rows
            ):
                starting[queued.row_id] = queued
            else:
                remaining.append(queued)
        if remaining:
            self._queues[statement] = remaining  # behind the other SQL texts
        return [starting[row_id] for row_id in sorted(starting)]

    def _start_batch(self, sql: str, batch: "list[_Queued]") -> None:
        slots = _Slots(self, min(len(batch), self._slots_of_batch))
        task = asyncio.create_task(self._run_batch(sql, batch, slots), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for queued in batch:
            queued.batch = task

    async def _run_batch(self, sql: str, batch: "list[_Queued]", slots: "_Slots") -> None:
        def hold_rows(release: asyncio.Task[None]) -> None:
            for queued in batch:
                self._hold(queued.row_id, release)

        try:
            with self._batch_span([queued.context for queued in batch]):
                rows = await self._database.fetchmany(sql, _Arguments(batch), on_cancel=hold_rows)
        except RolledBack:
            for queued in batch:
                queued.start_single()
        except Exception as error:
            for queued in batch:
                queued.fail(error)
        else:
            by_id = {row[0]: row for row in rows}
            for queued in batch:
                queued.succeed(by_id.get(queued.row_id))
        finally:
            slots.release()

    def _hold(self, row_id: int, until: "asyncio.Task[None]") -> None:
        """Keep statements about that row queued until the task has ended."""
        self._held_rows[row_id] += 1
        until.add_done_callback(partial(self._unhold, row_id), context=Context())

    def _unhold(self, row_id: int, _ended: "asyncio.Task[None]") -> None:
        self._held_rows[row_id] -= 1
        if not self._held_rows[row_id]:
            del self._held_rows[row_id]
        self._start_queued()


class _RunSingle:
    """The result that makes the caller of a queued statement run it as a single one."""


class _Queued:
    """A statement whose caller waits for ``result``.

    It starts in ``batch``, or with ``slots`` as a single one. When a batch is rolled back, its
    statements run as single ones without slots.
    """

    __slots__ = ("args", "batch", "context", "result", "row_id", "slots")

    def __init__(self, row_id: int, args: Sequence[object]) -> None:
        self.row_id = row_id
        self.args = args
        self.context = copy_context()
        self.result: asyncio.Future[_Row | _RunSingle] = asyncio.get_running_loop().create_future()
        self.batch: asyncio.Task[None] | None = None
        self.slots: _Slots | None = None

    def start_single(self, slots: "_Slots | None" = None) -> None:
        self.slots = slots
        self.succeed(_RunSingle())

    def succeed(self, result: "_Row | _RunSingle") -> None:
        if not self.result.cancelled():
            self.result.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.result.cancelled():
            self.result.set_exception(error)


class _Arguments:
    """The arguments of a batch, without those of statements cancelled before it is sent."""

    def __init__(self, batch: list[_Queued]) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[Sequence[object]]:
        return (queued.args for queued in self._batch if not queued.result.cancelled())


class _Slots:
    """Some slots that are taken: until ``release``, and for 10 ms at most."""

    __slots__ = ("_batcher", "_count", "_timer")

    def __init__(self, batcher: Batcher, count: int) -> None:
        self._batcher: Batcher | None = batcher
        self._count = count
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_SLOT_SECONDS, self.release, context=Context())
        batcher._in_flight += count

    def release(self) -> None:
        """Let queued statements start. Does nothing once the slots have been released."""
        self._timer.cancel()
        if self._batcher is not None:
            batcher, self._batcher = self._batcher, None
            batcher._in_flight -= self._count
            batcher._start_queued()
