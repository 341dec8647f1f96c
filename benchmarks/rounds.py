"""The rounds: contestants in turn, each by itself.

They alternate because the speed of a machine varies over time: a contestant's figures are compared
with those of the other in the same round.
"""

from collections.abc import Sequence
from typing import Final

from benchmarks import pgbench
from benchmarks.contestants import GRPC_AIO, LISTINGS, Contestant
from benchmarks.database import OrderDatabase
from benchmarks.measuring import Bench, Visit
from benchmarks.series import Plan

Results = dict[str, dict[str, list[float]]]
"""By the contestant's name and the measure: the figure of each round.

The measures are those of ``measuring.Figures`` but for ``p50`` and ``p99``. These are taken at half
of the contestant's own highest rate. grpc.aio's ``same_p50`` and ``same_p99`` are taken at half of
this service's highest.
``start`` is the time to the first response, in seconds; ``memory`` is a worker's at the end, in
bytes.
"""

_HALF: Final = 0.5


def measure(
    bench: Bench,
    plan: Plan,
    contestants: Sequence[Contestant],
    database: OrderDatabase,
    *,
    limit: bool,
) -> Results:
    """Return the figures; with ``limit``, those of pgbench as well."""
    results: Results = {}
    for number in range(1, plan.rounds + 1):
        rates: dict[str, float] = {}
        for contestant in contestants:
            bench.say(f"Round {number} of {plan.rounds}: {contestant.name}")
            with bench.visit(contestant, database) as visit:
                figures = _visit(visit, plan, rates)
            for measure, figure in figures.items():
                results.setdefault(contestant.name, {}).setdefault(measure, []).append(figure)
        if limit:
            bench.say(f"Round {number} of {plan.rounds}: {pgbench.NAME}")
            figures = pgbench.measure(database, plan.seconds, bench.scratch)
            for measure, figure in figures.items():
                results.setdefault(pgbench.NAME, {}).setdefault(measure, []).append(figure)
    return results


def _visit(visit: Visit, plan: Plan, rates: dict[str, float]) -> dict[str, float]:
    name = visit.contestant.name
    figures = visit.measure(plan.calls(visit.warm_rate))
    for measure in ("p50", "p99"):  # in a closed loop, they follow from the rate
        figures.pop(measure, None)
    rates[name] = figures["rate"]
    if not visit.contestant.keyed:
        figures |= _paced(visit, plan, rates[name] * _HALF, "")
        if name == GRPC_AIO and LISTINGS in rates:
            figures |= _paced(visit, plan, rates[LISTINGS] * _HALF, "same_")
    return figures | {"start": visit.start, "memory": visit.memory()}


def _paced(visit: Visit, plan: Plan, rate: float, prefix: str) -> dict[str, float]:
    """Return the latencies of a paced load."""
    figures = visit.measure(plan.calls_by_clock(rate), rate=rate)
    return {f"{prefix}{measure}": figures[measure] for measure in ("p50", "p99")}
