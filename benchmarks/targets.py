"""The performance targets, and whether they are met."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks import pgbench
from benchmarks.contestants import BARE, FASTAPI, GO_GRPC, GRPC_AIO, LISTINGS, PER_CORE
from benchmarks.reads import FAST, GET, OFF
from benchmarks.reads import Costs as ReadCosts
from benchmarks.rounds import Results
from benchmarks.series import CONNECTED, CONNECTIONS, REMEMBERING, SIZES, Series

_MEMORY_LIMIT: Final = 110 * 2**20


@dataclass(frozen=True)
class Target:
    """A figure that must be at most, or at least, ``limit``; ``measured`` has one per round."""

    number: str
    text: str
    limit: float
    measured: Sequence[float]
    at_least: bool = False

    @property
    def is_met(self) -> bool | None:
        """Return whether the median is within the limit; None if nothing was measured."""
        if not self.measured:
            return None
        compare: Callable[[float, float], bool] = operator.ge if self.at_least else operator.le
        return compare(median(self.measured), self.limit)


def ratios(results: Results, measure: str, ours: str, other: str, others: str = "") -> list[float]:
    """Return the ratio of ``ours`` to ``other`` for each round.

    ``others`` is the measure of ``other``, if it is another one.
    """
    pairs = zip(
        results.get(ours, {}).get(measure, ()),
        results.get(other, {}).get(others or measure, ()),
        strict=False,  # one of them may not have been measured
    )
    return [our_figure / other_figure for our_figure, other_figure in pairs]


def targets(
    results: Results, sizes: Series, connections: Series, memory: Series, reads: ReadCosts
) -> list[Target]:
    """Return all targets with their measured figures."""
    both = LISTINGS + PER_CORE
    first = [
        Target(
            "1",
            "server CPU a call, gRPC, with history and guard, to that of grpc.aio without",
            0.55,
            ratios(results, "server_cpu", LISTINGS, GRPC_AIO),
        ),
        Target(
            "2",
            "PostgreSQL's CPU a call, bare statement, to that of grpc.aio",
            0.6,
            ratios(results, "postgres_cpu", BARE, GRPC_AIO),
        ),
        Target(
            "3",
            "calls a second, a process a core, to those of grpc.aio",
            1.8,
            ratios(results, "rate", both, GRPC_AIO + PER_CORE),
            at_least=True,
        ),
        Target(
            "3",
            "calls a second, a process a core, to those of FastAPI and SQLAlchemy",
            3,
            ratios(results, "rate", both, FASTAPI + PER_CORE),
            at_least=True,
        ),
        Target(
            "4",
            "calls a second, a process a core, to pgbench's transactions of the same statement",
            0.4,
            ratios(results, "rate", both, pgbench.NAME),
            at_least=True,
        ),
        Target(
            "5",
            "server CPU a call, to that of grpc-go and pgx",
            2.5,
            ratios(results, "server_cpu", LISTINGS, GO_GRPC),
        ),
        Target(
            "6",
            "p99 at half of the service's highest rate, to that of grpc.aio at the same rate",
            0.7,
            ratios(results, "p99", LISTINGS, GRPC_AIO, "same_p99"),
        ),
    ]
    return first + _growth(sizes, connections) + _memory(memory) + _fast_reads(reads)


def _growth(sizes: Series, connections: Series) -> list[Target]:
    found = []
    for name in SIZES:
        points = list(sizes.get(name, {}))
        lowest, highest = (points[0], points[-1]) if points else ("?", "?")
        text = f"CPU a call of both, {name}, at {highest} orders to that at {lowest}"
        grown = _total_growth(sizes, name, lowest, highest)
        found.append(Target("7", text, 1.1, grown if lowest != highest else []))
    lowest, highest = str(CONNECTIONS[0]), str(CONNECTIONS[-1])
    for name in CONNECTED:
        text = f"CPU a call of both, {name}, with {highest} connections to that with {lowest}"
        found.append(Target("7", text, 1.25, _total_growth(connections, name, lowest, highest)))
    return found


def _total_growth(series: Series, name: str, lowest: str, highest: str) -> list[float]:
    """Return the growth of the CPU time a call, of the service and PostgreSQL together."""
    ends = [series.get(name, {}).get(point, {}) for point in (lowest, highest)]
    low, high = (
        [
            sum(pair)
            for pair in zip(end.get("server_cpu", ()), end.get("postgres_cpu", ()), strict=False)
        ]
        for end in ends
    )
    return [after / before for before, after in zip(low, high, strict=False)]


def _memory(memory: Series) -> list[Target]:
    found = []
    for name in REMEMBERING:
        points = memory.get(name, {})
        sizes = [points[point]["memory"][0] for point in points]
        text = f"memory of a worker, {name}, to 110 MiB"
        most = [max(sizes) / _MEMORY_LIMIT] if sizes else []
        found.append(Target("8", text, 1, most))
        text = (
            f"memory of a worker, {name}, after {' calls to that after '.join(list(points)[::-1])}"
        )
        grown = [sizes[-1] / sizes[0]] if len(sizes) > 1 else []
        found.append(Target("8", text, 1.05, grown))
    return found


def _fast_reads(reads: ReadCosts) -> list[Target]:
    ways = reads.get(GET, {})
    pairs = zip(ways.get(FAST, ()), ways.get(OFF, ()), strict=True)
    text = f"server CPU a call, {GET} over gRPC, to that with the fast path off"
    return [Target("9", text, 0.6, [fast / off for fast, off in pairs])]
