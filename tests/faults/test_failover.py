"""A primary is killed and its synchronous standby promoted: no acknowledged update is lost."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import checker, cluster, service
from tests.support.cluster import Cluster
from tests.support.load import OK, UNKNOWN, Attempt, Call, Log, Updates, attempt, callers, grpcio
from tests.support.service import Service
from tests.support.trial import Trial

pytestmark = pytest.mark.anyio

WRITABLE = 5.0  # seconds from the end of the promotion to the first writes

STATEMENT_TIMEOUT = 1.0


class Pair(NamedTuple):
    """Two servers, and a service whose URL names both."""

    primary: Cluster
    standby: Cluster
    service: Service

    async def fail_over(self) -> None:
        await asyncio.to_thread(self.primary.kill)
        await asyncio.to_thread(self.standby.promote)


@contextmanager
def running_pair(log: Path) -> Iterator[Pair]:
    with cluster.running() as primary, primary.standby() as standby:
        url = cluster.url_of(primary, standby, target_session_attrs="read-write")
        with service.running(url, log, statement_timeout=str(STATEMENT_TIMEOUT)) as running:
            yield Pair(primary, standby, running)


async def test_a_standby_takes_over_under_load(tmp_path: Path, trial: Trial) -> None:
    tried, lost, waits, calls, failed = trial.times(1, 5), [], [], 0, 0
    for number in range(tried):
        with running_pair(tmp_path / f"log.{number}") as pair:
            async with callers(pair.service.base_url, Updates(pair.primary.url)) as load:
                await load.answered(OK, since=time.monotonic())
                await pair.fail_over()
                promoted = time.monotonic()
                waits.append(await load.answered(OK, since=promoted) - promoted)
            lost += checker.losses(pair.standby.url, load.log)
            codes = {(each.code, each.follows_table) for each in load.failed}
            assert codes == {("unavailable", True)}
        calls, failed = calls + len(load.log), failed + len(load.failed)

    trial.report(
        tried, len(lost), f"{calls} calls, {failed} failed; writes again in {max(waits):.2f} s"
    )
    assert lost == []
    assert max(waits) <= WRITABLE


class Sender:
    """Sends one keyed update over and over."""

    def __init__(self, call: Call, updates: Updates) -> None:
        self.log = Log()
        self.update = updates.next(keyed=True)
        self._call = call

    @classmethod
    async def of(cls, call: Call, updates: Updates) -> "Sender":
        """Send another update, so that the standby has the orders; then return a sender."""
        assert (await attempt("grpcio", call, updates.next(), WRITABLE)).code == OK
        return cls(call, updates)

    async def send(self, deadline: float | None) -> Attempt:
        self.log.append(await attempt("grpcio", self._call, self.update, deadline))
        return self.log[-1]

    async def send_until_acknowledged(self) -> Attempt:
        async with asyncio.timeout(WRITABLE):
            while (made := await self.send(WRITABLE)).code != OK:
                assert made.code in UNKNOWN
        return made

    async def commit_on_the_primary_alone(self, primary: Cluster, deadline: float | None) -> None:
        """Commit the update while the standby is down: no attempt may be acknowledged.

        The commit is seen once its wait for the standby has ended, which may be after the caller's
        deadline; an attempt whose deadline passes before its commit begins leaves nothing.
        """
        entered = "SELECT count(*) FROM order_payment_events WHERE idempotency_key = %s"
        async with asyncio.timeout(4 * WRITABLE):
            while primary.execute(entered, self.update.payment_idempotency_key) == 0:
                assert (await self.send(deadline)).code in UNKNOWN
        for limit in (deadline, 2 * STATEMENT_TIMEOUT):
            assert (await self.send(limit)).code in UNKNOWN


# Which limit ends the wait for the standby: the caller's deadline or the statement timeout.
by_either_limit = pytest.mark.parametrize("deadline", [0.3, None], ids=["caller's", "service's"])


@by_either_limit
async def test_a_replay_waits_for_the_standby(deadline: float | None, tmp_path: Path) -> None:
    with running_pair(tmp_path / "log") as (primary, standby, running):
        async with grpcio(running.base_url) as call:
            sender = await Sender.of(call, Updates(primary.url))
            with standby.suspended():
                await sender.commit_on_the_primary_alone(primary, deadline)
            assert (await sender.send_until_acknowledged()).replayed
        assert checker.losses(standby.url, sender.log) == []


@by_either_limit
async def test_an_update_missing_on_the_promoted_standby_is_made_again(
    deadline: float | None, tmp_path: Path
) -> None:
    with running_pair(tmp_path / "log") as (primary, standby, running):
        async with grpcio(running.base_url) as call:
            sender = await Sender.of(call, Updates(primary.url))
            await asyncio.to_thread(standby.kill)
            await sender.commit_on_the_primary_alone(primary, deadline)
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(standby.start)
            await asyncio.to_thread(standby.promote)
            assert not (await sender.send_until_acknowledged()).replayed
        assert checker.losses(standby.url, sender.log) == []
