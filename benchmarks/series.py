"""Series besides the rounds: figures by load, table size, number of connections, and time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.contestants import GRPC_AIO, LISTINGS, Contestant
from benchmarks.database import OrderDatabase
from benchmarks.measuring import Bench, Figures, Visit, settled_rate
from benchmarks.wire import LANES

Series = dict[str, dict[str, dict[str, list[float]]]]
"""By the contestant's name, the point and the measure: the figure of each round."""

SHARES: Final = (10, 25, 50, 70)  # more is close to overload, where calls are refused
CONNECTIONS: Final = (1, 32, 320, 960)
SETTLED_CALLS: Final = 10_000

LATENCY: Final = (LISTINGS, GRPC_AIO)
SIZES: Final = (LISTINGS, "listings-json")
CONNECTED: Final = (LISTINGS,)
REMEMBERING: Final = (LISTINGS,)
"""The contestants of each series."""

_FEWEST_CALLS: Final = 64 * LANES
_LONGER_BY_CLOCK: Final = 2.5
_SHARE_OF_CONNECTIONS: Final = 0.2  # of the highest rate: one connection must reach it
_MEMORY_CALLS: Final = 50_000  # at a time


@dataclass(frozen=True)
class Plan:
    """The size of a measurement: rounds, and the seconds of a load in each.

    A paced load lasts longer: its p99 needs more calls.
    """

    rounds: int
    seconds: float

    def calls(self, rate: float) -> int:
        """Return the number of calls at a rate."""
        return max(_FEWEST_CALLS, round(rate * self.seconds))

    def calls_by_clock(self, rate: float) -> int:
        """Return the number of calls of a paced load."""
        return self.calls(rate * _LONGER_BY_CLOCK)


def add(series: Series, name: str, point: object, figures: Figures) -> None:
    """Append the figures of a round."""
    measures = series.setdefault(name, {}).setdefault(str(point), {})
    for measure, figure in figures.items():
        measures.setdefault(measure, []).append(figure)


def latency(
    bench: Bench, plan: Plan, contestants: Sequence[Contestant], database: OrderDatabase
) -> Series:
    """Return the figures at some shares, in percent, of the highest rate of each contestant."""
    series: Series = {}
    for _ in range(plan.rounds):
        for contestant in contestants:
            with bench.visit(contestant, database) as visit:
                highest = _highest(visit, plan)
                for share in SHARES:
                    rate = highest * share / 100
                    figures = visit.measure(plan.calls_by_clock(rate), rate=rate)
                    add(series, contestant.name, share, figures)
    return series


def table_size(
    bench: Bench,
    plan: Plan,
    contestants: Sequence[Contestant],
    databases: Mapping[int, OrderDatabase],
) -> Series:
    """Return the figures by the number of orders in the table."""
    series: Series = {}
    for _ in range(plan.rounds):
        for contestant in contestants:
            for orders, database in databases.items():
                with bench.visit(contestant, database) as visit:
                    figures = visit.measure(plan.calls(visit.warm_rate))
                    add(series, contestant.name, orders, figures)
    return series


def connections(
    bench: Bench, plan: Plan, contestants: Sequence[Contestant], database: OrderDatabase
) -> Series:
    """Return the figures by the number of connections, all at the same rate."""
    series: Series = {}
    rate = 0.0
    most = settled_rate(plan.seconds)
    for _ in range(plan.rounds):
        for contestant in contestants:
            for number in CONNECTIONS:
                with bench.visit(contestant, database) as visit:
                    rate = rate or min(most, visit.warm_rate * _SHARE_OF_CONNECTIONS)
                    figures = visit.measure_settled(plan.seconds, number, rate)
                    add(series, contestant.name, number, figures)
    return series


def memory(
    bench: Bench,
    calls: int,
    contestants: Sequence[Contestant],
    database: OrderDatabase,
) -> Series:
    """Return the memory of a worker after some calls and after many, once."""
    series: Series = {}
    for contestant in contestants:
        with bench.visit(contestant, database) as visit:
            for target in (min(SETTLED_CALLS, calls), calls):
                while visit.calls < target:
                    visit.run(min(_MEMORY_CALLS, target - visit.calls))
                    bench.say(f"  {contestant.name}: {visit.calls:,} calls")
                add(series, contestant.name, target, {"memory": visit.memory()})
    return series


def _highest(visit: Visit, plan: Plan) -> float:
    return visit.measure(plan.calls(visit.warm_rate))["rate"]
