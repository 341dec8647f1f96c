"""A visit to a contestant: its server is started, called and stopped, and its updates are counted.

The load generators do not detect all errors: they count a gRPC error as a success, and a response
without an update would be a fast one. So at the end of a visit PostgreSQL must have updated exactly
as many rows as there were calls.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Final

from benchmarks import fleet, wrk
from benchmarks.contestants import Contestant
from benchmarks.database import Counts, OrderDatabase
from benchmarks.errors import BenchmarkError
from benchmarks.jobs import Job, Timing
from benchmarks.processes import Load, Server, cpu_seconds, log_tail, resident_bytes, server
from benchmarks.wire import LANES, PROTOCOLS, Protocol

Figures = dict[str, float]
"""By the measure.

``server_cpu`` and ``postgres_cpu`` in seconds a call, ``rate`` in calls a second, ``p50`` and
``p99`` in seconds. ``postgres_cpu`` is missing where PostgreSQL runs on another machine, ``p50``
and ``p99`` where the load generator does not report them.
"""

_WARM_UP_CALLS: Final = 50 * LANES
_START_SECONDS: Final = 1.0  # for a fleet to start; also its margin at the end
_KEYED_CALLERS: Final = 32
_MOST_A_CONNECTION: Final = 80  # calls a second; h2load's clock has 100 ticks a second
# The share of h2load's calls that may have the same body as the call before. In a paced load, late
# calls are sent together with those that are due, with the same body.
_REPEATED: Final = 0.05
_REPEATED_BY_CLOCK: Final = 0.1


@dataclass(frozen=True)
class Bench:
    """Shared by all visits: the load process, a directory for logs, and the progress output."""

    load: Load
    scratch: Path
    say: Callable[[str], object]

    @contextmanager
    def visit(self, contestant: Contestant, database: OrderDatabase) -> "Iterator[Visit]":
        """Start the contestant, make its first call and warm it up; at the end, stop and check it.

        Raises BenchmarkError when it does not start, and when any call has failed.
        """
        database.tidy(history=contestant.history)
        before = database.counts()
        log = self.scratch / "server.log"
        start = time.perf_counter()
        try:
            with server(contestant, database.url, log) as running:
                visit = Visit(self.load, contestant, database, running)
                visit.first_call()
                visit.start = time.perf_counter() - start
                visit.warm_rate = visit.run(_WARM_UP_CALLS).rate
                yield visit
                if not running.is_alive():
                    raise BenchmarkError("the server has ended")
            _account(visit.calls, visit.repeated, contestant, database.counts() - before)
        except BenchmarkError as error:
            told = log_tail(log) if log.exists() else ""
            raise BenchmarkError(f"{contestant.name}: {error}\n{told}".rstrip()) from error


@dataclass
class Visit:
    """A running contestant. ``start`` is the time to its first response, in seconds."""

    load: Load
    contestant: Contestant
    database: OrderDatabase
    running: Server
    start: float = 0.0
    warm_rate: float = 0.0
    calls: int = field(default=0, init=False)
    repeated: float = field(default=0.0, init=False)

    def first_call(self) -> None:
        """Make one call, and check the response."""
        self._do(self.load.run, self._job(1, connections=1))

    def measure(self, calls: int, *, connections: int = 0, rate: float | None = None) -> Figures:
        """Make ``calls`` calls, in a closed loop or paced at ``rate``, and return their cost.

        A paced load has as many connections as its rate needs.
        """
        if rate and not connections:
            connections = LANES * ceil(rate / LANES / _MOST_A_CONNECTION)
        before = self._cpu()
        timing = self.run(calls, connections or LANES, rate)
        after = self._cpu()
        figures = {name: (after[name] - before[name]) / timing.calls for name in before}
        figures["rate"] = timing.rate
        if timing.p50 is not None and timing.p99 is not None:
            figures |= {"p50": timing.p50, "p99": timing.p99}
        return figures

    def measure_settled(self, seconds: float, connections: int, rate: float) -> Figures:
        """Return the cost of paced calls for some seconds, while all connections are open.

        ``rate`` is at most ``settled_rate``.

        Connections are opened one after the other, and each costs more than a call.
        """
        start = time.time()
        settled = start + _START_SECONDS + connections / rate
        moments = []

        def look() -> None:
            for moment in (settled, settled + seconds):
                time.sleep(max(0.0, moment - time.time()))
                moments.append((time.time(), self._cpu()))

        with ThreadPoolExecutor(1) as executor:
            looking = executor.submit(look)
            calls = rate * (settled + seconds - start + _START_SECONDS)
            timing = self.run(round(calls), connections, rate)
            looking.result()
        (first, before), (last, after) = moments
        made = sum(first < end <= last for end in timing.ends)
        if not made:
            raise BenchmarkError("there were no calls while all connections were open")
        return {name: (after[name] - before[name]) / made for name in before} | {
            "rate": made / (last - first)
        }

    def _cpu(self) -> Figures:
        """Return the CPU time so far, in seconds."""
        cpu = {"server_cpu": cpu_seconds(self.running.process)}
        if self.database.postmaster:
            cpu["postgres_cpu"] = cpu_seconds(self.database.postmaster)
        return cpu

    def run(self, calls: int, connections: int = LANES, rate: float | None = None) -> Timing:
        """Make ``calls`` calls by the generator that can make them."""
        job = self._job(calls, connections=connections, rate=rate)
        if not self._protocol.http2 and not rate:
            return self._do(lambda job: wrk.run(job, self.running.is_alive), job)
        if not job.keyed:
            timing = self._do(lambda job: fleet.run(job, self.running.is_alive), job)
            self.repeated += timing.calls * (_REPEATED_BY_CLOCK if rate else _REPEATED)
            return timing
        return self._do(self.load.run, replace(job, connections=_KEYED_CALLERS))

    def memory(self) -> float:
        """Return the resident memory of a worker, in bytes."""
        return resident_bytes(self.running.process)

    @property
    def _protocol(self) -> Protocol:
        return PROTOCOLS[self.contestant.protocol]

    def _job(self, calls: int, *, connections: int, rate: float | None = None) -> Job:
        return Job(
            protocol=self.contestant.protocol,
            base_url=self.running.base_url,
            orders=self.database.orders,
            calls=calls,
            keyed=self.contestant.keyed,
            connections=connections,
            rate=rate,
        )

    def _do(self, generator: Callable[[Job], Timing], job: Job) -> Timing:
        timing = generator(job)
        self.calls += timing.calls
        return timing


def settled_rate(seconds: float) -> float:
    """Return the highest rate at which ``measure_settled`` can call over one connection."""
    return (fleet.MOST_CALLS - 1) / (2 * _START_SECONDS + seconds)


def _account(calls: int, repeated: float, contestant: Contestant, counts: Counts) -> None:
    """Raise BenchmarkError unless PostgreSQL has changed as many rows as there were calls.

    A service that batches updates makes some of them twice, if one of the batch is refused: the
    statistics then count a rollback, and the rows that it has undone.
    """
    if counts.updates != calls and not (counts.rollbacks and counts.updates > calls):
        raise BenchmarkError(f"{calls:,} calls were answered, {counts.updates:,} rows were updated")
    if contestant.history and calls - counts.events > repeated:
        raise BenchmarkError(
            f"{calls:,} calls, but {counts.events:,} events: others have changed nothing"
        )
