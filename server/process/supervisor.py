"""Several worker processes that serve one port, and a parent that replaces those that die.

Each worker has a listening socket of its own (see ``server.http.sockets``). The parent keeps it
open as well: when a worker dies, connections that it has not accepted wait for its replacement. A
worker whose parent dies stops as on SIGTERM.

Workers inherit the parent's file descriptors, among them its lock on an embedded PostgreSQL, so
that the server runs for as long as one of them does. Only the parent stops it: workers exit by
``os._exit``, which runs no clean-up of the parent's.
"""

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from typing import NamedTuple, TypeAlias

from server.http.sockets import stop_accepting
from server.process.metric_files import inherited_metrics
from server.process.sighup import ControllingTerminal

# Seconds.
_START_POLL = 0.05  # between two polls of workers that are starting
_STABLE = 10.0  # of running after which earlier failures of a worker are forgotten
_MAX_BACKOFF = 30.0  # before a worker that keeps dying is replaced
_GRACE = 10.0  # for a worker to exit, beyond what its calls are allowed

Work: TypeAlias = Callable[[socket.socket, Callable[[], object], int], None]
"""The body of a worker: serve on a listener until SIGTERM, call a function once connections are
accepted, and stop at the end of file of a pipe, whose other end the parent holds. It starts with
SIGHUP blocked, and unblocks it."""

_STOP_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT))

_fork = multiprocessing.get_context("fork")
_log = logging.getLogger(__name__)


class WorkersFailed(Exception):
    """A worker exited before all workers had served."""


def serve_with_workers(
    work: Work, listeners: Sequence[socket.socket], ready: Callable[[], object], limit: float
) -> None:
    """Run ``work`` in one process for each listener until SIGTERM or SIGINT, then stop them all.

    ``ready`` is called once all of them accept connections; ``limit`` is how many seconds they have
    to finish calls at the end. A worker that dies is replaced. SIGHUP is passed on to all of them,
    or stops them when the terminal was closed. Raises WorkersFailed when one exits before all of
    them have served. It forks: call it while the process has one thread, within ``shared_metrics``.
    """
    stops = set(_STOP_SIGNALS)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        stops.add(signal.SIGHUP)
    # The parent takes them by sigtimedwait. A worker unblocks them once it can handle them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stops | {signal.SIGCHLD})
    try:
        _Parent(work, listeners, limit, mask).run(stops, ready)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Pipe(NamedTuple):
    """The file descriptors of a pipe."""

    read: int
    write: int


@dataclass
class _Slot:
    """A listener, and the worker that serves it at present, if one does."""

    listener: socket.socket
    worker: ForkProcess | None = None
    started_at: float = 0.0
    failures: int = 0
    """How often in a row a worker of this slot died soon after its start."""
    next_start: float = 0.0


class _Parent:
    def __init__(
        self,
        work: Work,
        listeners: Sequence[socket.socket],
        limit: float,
        mask: set[int | signal.Signals],
    ) -> None:
        self._work = work
        self._slots = [_Slot(listener) for listener in listeners]
        self._limit = limit
        self._mask = mask
        # Never written to: a worker reads its end of file when the parent, and so the only write
        # end, is gone.
        self._parent_pipe = _Pipe(*os.pipe())
        # Each worker writes one byte when it serves.
        self._ready_pipe = _Pipe(*os.pipe())
        os.set_blocking(self._ready_pipe.read, False)
        self._terminal = ControllingTerminal()

    def run(self, stops: set[signal.Signals], ready: Callable[[], object]) -> None:
        """Keep the workers running until one of the signals comes."""
        serving = 0
        try:
            while True:
                for slot in self._slots:
                    self._ensure_worker(slot, replacing=serving == len(self._slots))
                if serving < len(self._slots):
                    serving += self._count_ready()
                    if serving == len(self._slots):
                        ready()
                received = signal.sigtimedwait(stops | {signal.SIGCHLD}, self._pause(serving))
                if received is None or received.si_signo == signal.SIGCHLD:
                    continue
                if received.si_signo != signal.SIGHUP or self._terminal.is_closed():
                    break
                self._signal(self._slots, signal.SIGHUP)
        finally:
            self._stop(stops)

    def _ensure_worker(self, slot: _Slot, *, replacing: bool) -> None:
        """Reap the slot's worker if it has exited, and start one unless a pause is under way."""
        now = time.monotonic()
        worker = slot.worker
        if worker is not None and worker.exitcode is not None:
            how = _described(worker.exitcode)
            if not replacing:
                raise WorkersFailed(f"worker {worker.pid} {how} before it served; see the log")
            slot.failures = 0 if now - slot.started_at > _STABLE else slot.failures + 1
            pause = min(0.1 * 2**slot.failures, _MAX_BACKOFF) if slot.failures > 1 else 0.0
            _log.warning("worker %s %s; restarting in %g s", worker.pid, how, pause)
            self._reap(slot)
            slot.next_start = now + pause
        if slot.worker is None and now >= slot.next_start:
            slot.worker = _fork.Process(target=self._run_worker, args=(slot,))
            slot.worker.start()
            slot.started_at = now

    def _pause(self, serving: int) -> float:
        """Return the seconds to wait for a signal before the slots are checked again."""
        if serving < len(self._slots):
            return _START_POLL
        starts = [slot.next_start for slot in self._slots if slot.worker is None]
        return max(0.0, min(starts) - time.monotonic()) if starts else 3600.0

    def _count_ready(self) -> int:
        try:
            return len(os.read(self._ready_pipe.read, 4096))
        except BlockingIOError:
            return 0

    def _stop(self, stops: set[signal.Signals]) -> None:
        """Stop the workers, and kill those that have not exited within the limit and ``_GRACE``."""
        for slot in self._slots:
            stop_accepting(slot.listener)
            slot.listener.close()  # the worker accepts what is queued, and closes it
        running = [slot for slot in self._slots if slot.worker is not None]
        self._signal(running, signal.SIGTERM)
        deadline = time.monotonic() + self._limit + _GRACE
        while running := [slot for slot in running if not self._has_exited(slot)]:
            left = deadline - time.monotonic()
            if left <= 0:
                allowed = self._limit + _GRACE
                _log.warning("killing %d workers that did not stop in %g s", len(running), allowed)
                self._signal(running, signal.SIGKILL)
                deadline = float("inf")
                left = _GRACE
            again = signal.sigtimedwait(stops | {signal.SIGCHLD}, min(left, 3600.0))
            if again is not None and again.si_signo == signal.SIGINT:
                self._signal(running, signal.SIGINT)  # Ctrl-C again: cut calls off
        for pipe in (self._parent_pipe, self._ready_pipe):
            os.close(pipe.read)
            os.close(pipe.write)

    def _has_exited(self, slot: _Slot) -> bool:
        worker = slot.worker
        if worker is None or worker.exitcode is None:
            return worker is None
        if worker.exitcode != 0:
            _log.warning("worker %s %s", worker.pid, _described(worker.exitcode))
        self._reap(slot)
        return True

    def _reap(self, slot: _Slot) -> None:
        from prometheus_client import multiprocess

        assert slot.worker is not None  # noqa: S101 - callers check
        multiprocess.mark_process_dead(slot.worker.pid)  # type: ignore[no-untyped-call]
        slot.worker.close()
        slot.worker = None

    @staticmethod
    def _signal(slots: Sequence[_Slot], number: signal.Signals) -> None:
        for slot in slots:
            worker = slot.worker
            # Without an exit code it was not reaped, so the process id is still its own.
            if worker is not None and worker.exitcode is None and worker.pid is not None:
                os.kill(worker.pid, number)

    # In the worker

    def _run_worker(self, slot: _Slot) -> None:
        os.close(self._parent_pipe.write)
        os.close(self._ready_pipe.read)
        for other in self._slots:
            if other is not slot:
                other.listener.close()
        # Blocked until it serves, since the inherited handlers are the parent's: SIGHUP would end
        # it, and the others could be lost, for Python ignores what a handler raises in a finalizer.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask | {signal.SIGHUP, *_STOP_SIGNALS})
        try:
            with inherited_metrics():
                self._work(slot.listener, self._report_ready, self._parent_pipe.read)
        except Exception:
            _log.exception("worker failed")
            raise SystemExit(1) from None

    def _report_ready(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        os.write(self._ready_pipe.write, b".")


def _described(exitcode: int) -> str:
    if exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"
