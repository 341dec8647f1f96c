"""The measuring: starts first, then rounds under load, the contestants in turn.

They take turns because a machine is not equally fast all the time: what a round of one is held
against is the round of the other beside it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import perf_counter

from benchmarks.contestants import Contestant
from benchmarks.database import OrderDatabase
from benchmarks.load import Job, Timing
from benchmarks.processes import (
    BenchmarkError,
    Load,
    Server,
    cpu_seconds,
    load,
    log_tail,
    resident_bytes,
    server,
)

Results = dict[str, dict[str, list[float]]]
"""By the contestant's name and the measure: the figure of each round.

The measures are ``server_cpu`` and ``postgres_cpu`` in seconds a call, ``rate`` in calls a second,
``p50``, ``p99`` and ``start`` (to the first answer) in seconds, and ``memory`` in bytes, taken once
at the end. ``postgres_cpu`` is missing where PostgreSQL runs on another machine.
"""


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, calls to each contestant a round, and callers at a time."""

    rounds: int
    requests: int
    concurrency: int


def measure(
    contestants: Sequence[Contestant],
    plan: Plan,
    database: OrderDatabase,
    scratch: Path,
    say: Callable[[str], object],
) -> Results:
    """Return what was measured. Logs go to ``scratch``. Raises BenchmarkError if a call fails."""
    results: Results = {contestant.name: defaultdict(list) for contestant in contestants}
    with load() as generator, ExitStack() as stack:
        bench = _Bench(plan, database, generator)
        for number in range(1, plan.rounds + 1):
            say(f"Start {number} of {plan.rounds}")
            for contestant in contestants:
                seconds = bench.start(contestant, scratch / "start.log")
                results[contestant.name]["start"].append(seconds)
        servers = {
            each.name: stack.enter_context(
                server(each, database.url, scratch / f"server{number}.log")
            )
            for number, each in enumerate(contestants)
        }
        for number in range(plan.rounds + 1):
            say(f"Round {number} of {plan.rounds}" if number else "Warm-up")
            for contestant in contestants:
                figures = bench.round(contestant, servers[contestant.name])
                for measure, figure in figures.items() if number else ():
                    results[contestant.name][measure].append(figure)
        for name, running in servers.items():
            results[name]["memory"].append(resident_bytes(running.process))
    return results


@dataclass
class _Bench:
    plan: Plan
    database: OrderDatabase
    load: Load
    seeds: "count[int]" = field(default_factory=count)

    def start(self, contestant: Contestant, log: Path) -> float:
        """Return the seconds from starting the process to the end of its first call."""
        start = perf_counter()
        with server(contestant, self.database.url, log) as running:
            self._call(contestant, running, requests=1, concurrency=1)
            return perf_counter() - start

    def round(self, contestant: Contestant, running: Server) -> dict[str, float]:
        """Return what one round of calls takes."""
        self.database.tidy(history=contestant.history)
        processes = {"server_cpu": running.process}
        if self.database.postmaster:
            processes["postgres_cpu"] = self.database.postmaster
        before = {measure: cpu_seconds(process) for measure, process in processes.items()}
        requests = self.plan.requests
        timing = self._call(contestant, running, requests, self.plan.concurrency)
        figures = {
            measure: (cpu_seconds(process) - before[measure]) / requests
            for measure, process in processes.items()
        }
        return figures | {"rate": requests / timing.seconds, "p50": timing.p50, "p99": timing.p99}

    def _call(
        self, contestant: Contestant, running: Server, requests: int, concurrency: int
    ) -> Timing:
        job = Job(
            protocol=contestant.protocol,
            keyed=contestant.keyed,
            base_url=running.base_url,
            requests=requests,
            concurrency=concurrency,
            orders=self.database.orders,
            seed=next(self.seeds),
        )
        try:
            return self.load.run(job)
        except BenchmarkError as error:
            raise BenchmarkError(
                f"a call to {contestant.name} failed: {error}\n{log_tail(running.log)}".rstrip()
            ) from error
