"""A watch over a fail-over: it has what the promoted standby has, or says that events are lost."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.support import checker, cluster, service
from tests.support.cluster import Cluster
from tests.support.follower import Follower, following
from tests.support.load import OK, Log, Updates, attempt, callers, grpcio
from tests.support.service import Service
from tests.support.trial import Trial
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.anyio

STATEMENT_TIMEOUT = 1.0
CUT_SHORT = 0.15  # seconds, a caller's deadline while no standby answers


class Pair(NamedTuple):
    """Two servers, and a service whose URL names both."""

    primary: Cluster
    standby: Cluster
    service: Service

    async def fail_over(self) -> None:
        """Promote the standby, which may have been killed before."""
        await asyncio.to_thread(self.primary.kill)
        await asyncio.to_thread(self.standby.kill)
        await asyncio.to_thread(self.standby.start)
        await asyncio.to_thread(self.standby.promote)


@contextmanager
def running_pair(log: Path) -> Iterator[Pair]:
    with cluster.running() as primary, primary.standby() as standby:
        url = cluster.url_of(primary, standby, target_session_attrs="read-write")
        settings = {"statement_timeout": str(STATEMENT_TIMEOUT), "watch_heartbeat": "0.3"}
        with service.running(url, log, **settings) as running:
            yield Pair(primary, standby, running)


def entered(url: str, order_ids: list[int]) -> list[dict[str, Any]]:
    """Return the events of these orders in the history."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return connection.execute(
            "SELECT id, order_id, payment_transaction_id_after FROM order_payment_events"
            " WHERE order_id = ANY(%s) ORDER BY id",
            (order_ids,),
        ).fetchall()


class Told(NamedTuple):
    """The difference between what a follower was sent and what is in the history."""

    missed: Sequence[object]
    invented: Sequence[object]
    twice: int

    @classmethod
    def of(cls, follower: Follower, history: list[dict[str, Any]]) -> "Told":
        sent = [
            (each.id, each.order_id, each.after and each.after.payment_transaction_id)
            for each in follower.events
        ]
        there = [tuple(each.values()) for each in history]
        missed = [each for each in there if each not in sent]
        invented = [each for each in sent if each not in there]
        return cls(missed, invented, len(sent) - len(set(sent)))


NOTHING_WRONG = Told([], [], 0)


async def updates_cut_short(pair: Pair, updates: Updates, log: Log, seconds: float) -> None:
    """Send updates whose callers do not wait until the standby has them."""
    end = time.monotonic() + seconds
    async with grpcio(pair.service.base_url) as call:

        async def go_on() -> None:
            while time.monotonic() < end:
                log.append(await attempt("grpcio", call, updates.next(), CUT_SHORT))

        await asyncio.gather(*(go_on() for _ in range(4)))


async def finished(pair: Pair, updates: Updates, follower: Follower, log: Log) -> None:
    """Make one more update, and wait until the follower has it."""
    async with grpcio(pair.service.base_url) as call:
        request = updates.next(keyed=True)
        log.append(await attempt("grpcio", call, request, 10))
        assert log[-1].code == OK
    await follower.has(request.payment_transaction_id)


async def test_a_synchronous_standby_takes_over(tmp_path: Path, trial: Trial) -> None:
    """Updates are visible on the primary alone: a watch does not have them, and all others."""
    tried, lost, told, cut = trial.times(1, 5), [], [], 0
    for number in range(tried):
        with running_pair(tmp_path / f"log.{number}") as pair:
            updates, cut_short, base_url = Updates(pair.primary.url), Log(), pair.service.base_url
            async with following(base_url, updates.order_ids) as follower:
                async with callers(base_url, updates, each=1) as load:
                    await load.answered(OK, since=time.monotonic())
                    with pair.standby.suspended():  # these get there later
                        await updates_cut_short(pair, updates, cut_short, 0.6)
                    await load.answered(OK, since=time.monotonic())
                    await asyncio.to_thread(pair.standby.kill)
                    await updates_cut_short(pair, updates, cut_short, 0.6)
                    visible = entered(pair.primary.url, updates.order_ids)
                    await pair.fail_over()
                    await load.answered(OK, since=time.monotonic())
                await finished(pair, updates, follower, load.log)
            history = entered(pair.standby.url, updates.order_ids)
            cut += len([each for each in visible if each not in history])
            lost += checker.losses(pair.standby.url, [*load.log, *cut_short])
            told.append(Told.of(follower, history))
            assert follower.failures == []  # what is durable is not lost: its stream goes on
            assert not pair.service.logged(level="error")
    trial.report(tried, len(lost), f"{cut} events were visible and not durable")
    assert lost == []
    assert told == [NOTHING_WRONG] * tried
    assert cut


async def until_the_standby_has_all(pair: Pair) -> None:
    behind = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn < pg_current_wal_lsn()"
    async with asyncio.timeout(10):
        while await asyncio.to_thread(pair.primary.execute, behind):
            pass


async def test_an_asynchronous_standby_takes_over_without_the_last_commits(
    tmp_path: Path, trial: Trial
) -> None:
    """What is lost is lost in rows, history and stream alike; and the streams say so."""
    with running_pair(tmp_path / "log") as pair:
        pair.primary.configure("synchronous_standby_names", "")
        updates, log = Updates(pair.primary.url, all_good=True), Log()
        base_url, ids = pair.service.base_url, updates.order_ids
        async with following(base_url, ids) as follower:
            await finished(pair, updates, follower, log)
            await until_the_standby_has_all(pair)
            kept, known = follower.positions[-1], len(follower.events)
            await asyncio.to_thread(pair.standby.kill)
            for _ in range(5):
                await finished(pair, updates, follower, log)
            await pair.fail_over()
            await eventually_async(lambda: follower.has_ended)
            assert follower.reasons == {"HISTORY_CHANGED"}  # of the first stream: it ran until then
            assert len(follower.failures) == 1
        async with following(base_url, ids, follower.positions[-1]) as resumed:
            assert resumed.has_ended
            assert [each.code for each in resumed.failures] == ["aborted"]
            assert resumed.events == []
        async with following(base_url, ids, kept) as resumed, following(base_url, ids) as anew:
            for each in (anew, resumed):  # in this order, ``resumed`` has both updates
                await finished(pair, updates, each, log)
            assert resumed.failures == anew.failures == []
        history = entered(pair.standby.url, ids)
        losses = checker.losses(pair.standby.url, log)
        trial.report(1, 0, f"{len(losses)} acknowledged updates lost, as the streams said")
    sent = [each.id for each in follower.events[:known] + resumed.events]
    assert sent == [each["id"] for each in history]
    assert losses == [
        f"{each.after.payment_transaction_id} was acknowledged, and is not in the ledger"
        for each in follower.events[known:]
        if each.after is not None
    ]
    assert len(losses) == 5
