"""Overload: throughput stays at its maximum, and the service rejects the excess calls."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from tests.support import checker, cluster, service
from tests.support.load import OK, Call, Log, Updates, attempt, grpcio, open_loop
from tests.support.orders import Orders
from tests.support.trial import Trial

pytestmark = pytest.mark.anyio

POOL_SIZE = 4
QUEUE_SIZE = 40  # grpcio sends at most 128 concurrent calls over its connection
UPDATE = 0.04  # seconds that an update takes in the database: at most 100 a second
ORDERS = 200  # enough that updates do not wait for each other's row locks
WARM_UP = 1.0  # seconds at the beginning of each load that are not measured
DEADLINE = 20  # seconds

GOODPUT = 0.9  # of the highest
SLOWDOWN = 5  # times the latency at half load


@dataclass
class Result:
    """The calls of a load after the warm-up."""

    log: Log
    seconds: float

    @property
    def accepted(self) -> Log:
        return [each for each in self.log if each.code == OK]

    @property
    def refused(self) -> Log:
        return [each for each in self.log if each.code != OK]

    @property
    def goodput(self) -> float:
        """Accepted calls a second."""
        return len(self.accepted) / self.seconds

    @property
    def p99(self) -> float:
        """Seconds within which 99 of 100 accepted calls were answered."""
        return percentile([each.seconds for each in self.accepted], 99)


def percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]


class Meter:
    """Loads the service and measures the answers."""

    def __init__(self, call: Call, updates: Updates, seconds: float) -> None:
        self.log = Log()
        self._call = call
        self._updates = updates
        self._seconds = seconds

    async def best(self) -> Result:
        """Measure a closed loop with as many callers as keep the database busy."""
        began = time.monotonic()

        async def caller() -> None:
            while time.monotonic() < began + WARM_UP + self._seconds:
                await self._send()

        await asyncio.gather(*(caller() for _ in range(2 * POOL_SIZE)))
        return self._result(began)

    async def at(self, rate: float) -> Result:
        """Measure an open loop of ``rate`` calls a second."""
        began = time.monotonic()
        await open_loop(
            rate, self._send, lambda: time.monotonic() > began + WARM_UP + self._seconds
        )
        return self._result(began)

    async def _send(self, due: float | None = None) -> None:
        request = self._updates.next()
        self.log.append(await attempt("grpcio", self._call, request, DEADLINE, due))

    def _result(self, began: float) -> Result:
        first, last = began + WARM_UP, began + WARM_UP + self._seconds
        return Result([each for each in self.log if first <= each.ended < last], self._seconds)


async def test_four_times_the_highest_rate(tmp_path: Path, trial: Trial) -> None:
    seconds = trial.times(3, 20)
    with cluster.running() as postgres:
        orders = Orders(postgres.url)
        updates = Updates(
            postgres.url, all_good=True, order_ids=[orders.add() for _ in range(ORDERS)]
        )
        orders.slow_down(UPDATE)
        settings = {"pool_size": str(POOL_SIZE), "queue_size": str(QUEUE_SIZE)}
        with service.running(postgres.url, tmp_path / "log", **settings) as running:
            async with grpcio(running.base_url) as call:
                meter = Meter(call, updates, seconds)
                best = await meter.best()
                half = await meter.at(best.goodput / 2)
                over = await meter.at(best.goodput * 4)
        lost = checker.losses(postgres.url, meter.log)

    trial.report(
        len(meter.log),
        len(lost),
        f"goodput {over.goodput:.0f}/s of at best {best.goodput:.0f}/s; "
        f"99% within {over.p99 * 1000:.0f} ms, at half load {half.p99 * 1000:.0f} ms",
    )
    assert lost == []
    assert half.refused == best.refused == []
    assert {(each.code, each.may_be_retried) for each in over.refused} == {
        ("resource_exhausted", True)
    }
    assert median(each.seconds for each in over.refused) < UPDATE  # at once
    assert over.goodput >= GOODPUT * best.goodput
    assert over.p99 <= SLOWDOWN * half.p99
