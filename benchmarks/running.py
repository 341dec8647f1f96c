"""A run, from its parameters to all figures."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks import pgbench, reads, rounds, series, updates
from benchmarks.contestants import Contestant, contestants, select
from benchmarks.database import OrderDatabase, postgres, prepared
from benchmarks.environment import check_tools, environment
from benchmarks.measuring import Bench
from benchmarks.processes import load
from benchmarks.report import Run
from benchmarks.series import Plan, Series
from benchmarks.tokens import token_costs

PARTS: Final = (
    "rounds",
    "latency",
    "table-size",
    "connections",
    "memory",
    "tokens",
    "updates",
    "reads",
)

_UPDATE_ROUNDS: Final = 5  # short ones, for each of the others

Say = Callable[[str], object]


@dataclass(frozen=True)
class Wanted:
    """The parameters of a run: contestants by name or pattern, parts, and the size of each.

    ``orders`` are the table sizes; all parts but the cost by table size use the first.
    """

    contestants: Sequence[str]
    parts: Sequence[str]
    rounds: int
    seconds: float
    orders: Sequence[int]
    memory_calls: int

    @property
    def plan(self) -> Plan:
        """Return the plan of a round."""
        return Plan(self.rounds, self.seconds)


def measured(wanted: Wanted, say: Say, keep: Callable[[Run], object]) -> Run:
    """Measure the parts of ``wanted``, and pass the run to ``keep`` after each part.

    Raises BenchmarkError when any call fails.
    """
    check_tools()
    names = select(wanted.contestants, (pgbench.NAME,))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="listings-bench-")))
        chosen = contestants(names, scratch, say)
        server = stack.enter_context(postgres())
        say(f"Preparing {wanted.orders[0]:,} orders")
        database = stack.enter_context(prepared(server, wanted.orders[0]))
        run = Run(environment(database.version), asdict(wanted))
        bench = Bench(stack.enter_context(load()), scratch, say)
        parts = _Parts(bench, wanted, chosen, database)
        if "rounds" in wanted.parts:
            limit = pgbench.NAME in names
            run.rounds = rounds.measure(bench, wanted.plan, chosen, database, limit=limit)
            keep(run)
        if "latency" in wanted.parts:
            run.latency = parts.latency()
            keep(run)
        if "connections" in wanted.parts:
            run.connections = parts.connections()
            keep(run)
        if "table-size" in wanted.parts:
            run.table_size = parts.table_size(server)
            keep(run)
        if "memory" in wanted.parts:
            run.memory = parts.memory()
            keep(run)
        if "tokens" in wanted.parts:
            run.tokens = token_costs(scratch)
            keep(run)
        if "updates" in wanted.parts:
            say("Cost of an update to that of version 0.1")
            run.updates = updates.measure(server, wanted.orders[0], _UPDATE_ROUNDS * wanted.rounds)
            keep(run)
        if "reads" in wanted.parts:
            run.reads = reads.measure(bench, wanted.plan, database)
            keep(run)
    return run


@dataclass(frozen=True)
class _Parts:
    bench: Bench
    wanted: Wanted
    contestants: Sequence[Contestant]
    database: OrderDatabase

    def latency(self) -> Series:
        self.bench.say("Latency by load")
        chosen = self._chosen(series.LATENCY)
        return series.latency(self.bench, self.wanted.plan, chosen, self.database)

    def connections(self) -> Series:
        self.bench.say("Cost by connections")
        chosen = self._chosen(series.CONNECTED)
        return series.connections(self.bench, self.wanted.plan, chosen, self.database)

    def table_size(self, server: str) -> Series:
        chosen = self._chosen(series.SIZES)
        if not chosen:
            return {}
        with ExitStack() as stack:
            databases = {self.database.orders: self.database}
            for orders in self.wanted.orders[1:]:
                self.bench.say(f"Preparing {orders:,} orders")
                databases[orders] = stack.enter_context(prepared(server, orders))
            self.bench.say("Cost by table size")
            return series.table_size(self.bench, self.wanted.plan, chosen, databases)

    def memory(self) -> Series:
        self.bench.say("Memory by calls")
        chosen = self._chosen(series.REMEMBERING)
        calls = self.wanted.memory_calls
        return series.memory(self.bench, calls, chosen, self.database)

    def _chosen(self, names: Sequence[str]) -> list[Contestant]:
        return [each for each in self.contestants if each.name in names]
