"""Several processes that serve one port, and a parent that keeps their number.

Each has a listening socket of its own (see ``server.http.sockets``), which the parent keeps open as
well: when a worker dies, the connections that it had not accepted yet wait there for the next one.
A worker whose parent dies stops as if it had been told to.

What the workers inherit, among it the parent's lock on an embedded PostgreSQL, they keep until they
end. It is the same lock, so the database stays for as long as one of them lives, and it is the
parent that stops it: workers leave by ``os._exit``, without the parent's clean-up.
"""

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from typing import TypeAlias

from server.http.sockets import stop_accepting
from server.process.sighup import Terminal

# Seconds.
_LOOK = 0.05  # between two looks at workers that are about to start
_SETTLED = 10.0  # after which a worker counts as one that runs well
_LONGEST_PAUSE = 30.0  # before a worker that does not run well is replaced
_GRACE = 10.0  # for a worker to end, after what is allowed for its calls

Work: TypeAlias = Callable[[socket.socket, Callable[[], object], int], None]
"""What a worker does, until SIGTERM or the end of its parent: serve on a listener, call a function
once connections are accepted, and watch a pipe that ends with the parent. SIGHUP is blocked until
it unblocks it."""

_ENDS = frozenset((signal.SIGTERM, signal.SIGINT))

_fork = multiprocessing.get_context("fork")
_log = logging.getLogger(__name__)


class WorkersFailed(Exception):
    """A worker ended before the service had begun."""


def serve_with_workers(
    work: Work, listeners: Sequence[socket.socket], ready: Callable[[], object], limit: float
) -> None:
    """Run ``work`` in one process for each listener until SIGTERM or SIGINT, and end with them.

    ``ready`` is called once all of them accept connections; ``limit`` is how many seconds they are
    allowed for what is under way at the end. A worker that dies is replaced. SIGHUP is handed to
    all of them, or ends them when the terminal is gone. Raises WorkersFailed when one dies before
    all of them have served. Call it without other threads: it forks.
    """
    stops = set(_ENDS)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup has set
        stops.add(signal.SIGHUP)
    # They are waited for instead of handled. A worker lets them in when it can handle them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stops | {signal.SIGCHLD})
    try:
        _Parent(work, listeners, limit, mask).run(stops, ready)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def shared_metrics() -> Iterator[None]:
    """Let the processes that are forked within it count together.

    Enter it before prometheus_client is imported:
    https://prometheus.github.io/client_python/multiprocess/
    """
    with tempfile.TemporaryDirectory(prefix="listings-metrics-") as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        yield


@dataclass
class _Place:
    """The place of one worker, and who has it."""

    listener: socket.socket
    worker: ForkProcess | None = None
    since: float = 0.0
    failures: int = 0
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
        self._places = [_Place(listener) for listener in listeners]
        self._limit = limit
        self._mask = mask
        # Nothing is ever written to the first: it ends when we do. Into the second, each worker
        # writes a byte when it serves.
        self._lifeline, self._our_end = os.pipe()
        self._reports, self._workers_end = os.pipe()
        os.set_blocking(self._reports, False)
        self._terminal = Terminal()

    def run(self, stops: set[signal.Signals], ready: Callable[[], object]) -> None:
        """Keep the workers running until one of the signals comes."""
        serving = 0
        try:
            while True:
                for place in self._places:
                    self._tend(place, replacing=serving == len(self._places))
                if serving < len(self._places):
                    serving += self._count_reports()
                    if serving == len(self._places):
                        ready()
                received = signal.sigtimedwait(stops | {signal.SIGCHLD}, self._pause(serving))
                if received is None or received.si_signo == signal.SIGCHLD:
                    continue
                if received.si_signo != signal.SIGHUP or self._terminal.is_gone():
                    break
                self._signal(self._places, signal.SIGHUP)
        finally:
            self._stop(stops)

    def _tend(self, place: _Place, *, replacing: bool) -> None:
        """See to it that the place has a worker, or will have one."""
        now = time.monotonic()
        worker = place.worker
        if worker is not None and worker.exitcode is not None:
            how = _described(worker.exitcode)
            if not replacing:
                raise WorkersFailed(f"worker {worker.pid} {how} before it served; see the log")
            place.failures = 0 if now - place.since > _SETTLED else place.failures + 1
            pause = min(0.1 * 2**place.failures, _LONGEST_PAUSE) if place.failures > 1 else 0.0
            _log.warning("worker %s %s; another takes its place in %g s", worker.pid, how, pause)
            self._bury(place)
            place.next_start = now + pause
        if place.worker is None and now >= place.next_start:
            place.worker = _fork.Process(target=self._run_worker, args=(place,))
            place.worker.start()
            place.since = now

    def _pause(self, serving: int) -> float:
        """Return for how many seconds nothing is to be done unless a signal comes."""
        if serving < len(self._places):
            return _LOOK
        starts = [place.next_start for place in self._places if place.worker is None]
        return max(0.0, min(starts) - time.monotonic()) if starts else 3600.0

    def _count_reports(self) -> int:
        try:
            return len(os.read(self._reports, 4096))
        except BlockingIOError:
            return 0

    def _stop(self, stops: set[signal.Signals]) -> None:
        """Stop the workers, wait until they have, and end those that have not in time."""
        for place in self._places:
            stop_accepting(place.listener)
            place.listener.close()  # the worker accepts what waits, and closes it for good
        running = [place for place in self._places if place.worker is not None]
        self._signal(running, signal.SIGTERM)
        deadline = time.monotonic() + self._limit + _GRACE
        while running := [place for place in running if not self._has_ended(place)]:
            left = deadline - time.monotonic()
            if left <= 0:
                _log.warning("%d workers have not ended in time, and are killed", len(running))
                self._signal(running, signal.SIGKILL)
                deadline = float("inf")
                left = _GRACE
            again = signal.sigtimedwait(stops | {signal.SIGCHLD}, min(left, 3600.0))
            if again is not None and again.si_signo == signal.SIGINT:
                self._signal(running, signal.SIGINT)  # Ctrl-C for the second time: do not wait
        for end in (self._lifeline, self._our_end, self._reports, self._workers_end):
            os.close(end)

    def _has_ended(self, place: _Place) -> bool:
        worker = place.worker
        if worker is None or worker.exitcode is None:
            return worker is None
        if worker.exitcode != 0:
            _log.warning("worker %s %s", worker.pid, _described(worker.exitcode))
        self._bury(place)
        return True

    def _bury(self, place: _Place) -> None:
        from prometheus_client import multiprocess

        assert place.worker is not None  # noqa: S101 - who calls has looked
        multiprocess.mark_process_dead(place.worker.pid)  # type: ignore[no-untyped-call]
        place.worker.close()
        place.worker = None

    @staticmethod
    def _signal(places: Sequence[_Place], number: signal.Signals) -> None:
        for place in places:
            worker = place.worker
            # One that has no exit code was not waited for, so the number is still its own.
            if worker is not None and worker.exitcode is None and worker.pid is not None:
                os.kill(worker.pid, number)

    # What the worker does

    def _run_worker(self, place: _Place) -> None:
        os.close(self._our_end)
        os.close(self._reports)
        for other in self._places:
            if other is not place:
                other.listener.close()
        # Until it serves, the worker would handle them as its parent did. SIGHUP would end it, and
        # the others could be lost: within a finalizer, Python ignores what a handler raises.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask | {signal.SIGHUP, *_ENDS})
        try:
            self._work(place.listener, self._report, self._lifeline)
        except Exception:
            _log.exception("a worker failed")
            raise SystemExit(1) from None

    def _report(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
        os.write(self._workers_end, b".")


def _described(exitcode: int) -> str:
    if exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"
