"""PostgreSQL is killed under load: calls fail fast, nothing is lost, and service resumes."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import checker, cluster, service
from tests.support.cluster import Cluster
from tests.support.load import OK, Updates, callers
from tests.support.trial import Trial

pytestmark = pytest.mark.anyio

KNOWN = 1.0  # seconds until calls fail because the database is unavailable
BACK = 2.0  # seconds from the database's restart to the first successful calls


@pytest.mark.parametrize(
    ("kill", "times"),
    [
        pytest.param(Cluster.kill, (3, 20), id="everything"),
        pytest.param(Cluster.kill_postmaster, (1, 5), id="postmaster"),
        pytest.param(Cluster.kill_backend, (2, 5), id="backend"),
    ],
)
async def test_postgresql_killed_under_load(
    kill: Callable[[Cluster], None], times: tuple[int, int], tmp_path: Path, trial: Trial
) -> None:
    tried, returns = trial.times(*times), []
    with cluster.running() as postgres, service.running(postgres.url, tmp_path / "log") as running:
        async with callers(running.base_url, Updates(postgres.url)) as load:
            for _ in range(tried):
                await load.answered(OK, since=time.monotonic())
                await asyncio.to_thread(kill, postgres)
                if kill == Cluster.kill_backend:  # PostgreSQL recovers by itself
                    await asyncio.to_thread(postgres.wait_until_ready)
                else:
                    await load.answered("unavailable", since=time.monotonic())
                    await asyncio.to_thread(postgres.start)
                ready = time.monotonic()
                returns.append(await load.answered(OK, since=ready) - ready)
        lost = checker.losses(postgres.url, load.log)

    slowest = max(each.seconds for each in load.failed)
    trial.report(
        tried,
        len(lost),
        f"{len(load.log)} calls, {len(load.failed)} failed, each in {slowest:.2f} s; "
        f"back in {max(returns):.2f} s",
    )
    assert lost == []
    assert {(each.code, each.follows_table) for each in load.failed} == {("unavailable", True)}
    assert slowest <= KNOWN
    assert max(each.seconds for each in load.log) <= BACK
    assert max(returns) <= BACK
