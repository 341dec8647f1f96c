"""The database is read-only: updates fail with that reason until it accepts writes again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from server.gen.listings.v1.orders_pb import GetOrderRequest, WatchOrderPaymentsRequest
from tests.support import checker, cluster, service
from tests.support.load import CALLERS, OK, Call, Log, Updates, attempt, watching
from tests.support.trial import Trial

pytestmark = pytest.mark.anyio


class Callers:
    """A caller over each protocol, and the log of their attempts."""

    def __init__(self, calls: list[Call], watch: Call, updates: Updates) -> None:
        self.log = Log()
        self._calls = calls
        self._watch = watch
        self._updates = updates

    async def are_refused(self, *, by_standby: bool = False) -> None:
        """Check that updates fail as read-only, and that reads succeed.

        A watch begins, but not on a standby, which can give no position.
        """
        for call in self._calls:
            made = await attempt("", call, self._updates.next(), 10)
            self.log.append(made)
            assert (made.code, made.reason) == ("unavailable", "DATABASE_READ_ONLY")
            assert "takes no writes" in made.message
            assert made.may_be_retried
            read = GetOrderRequest(order_id=self._updates.order_ids[0])
            assert (await attempt("", call, read, 10)).code == OK
        watched = WatchOrderPaymentsRequest(order_ids=self._updates.order_ids)
        began = await attempt("", self._watch, watched, 10)
        expected = ("unavailable", "DATABASE_READ_ONLY") if by_standby else (OK, None)
        assert (began.code, began.reason) == expected

    async def are_served(self) -> None:
        """Check that all of them can write."""
        for call in self._calls:
            self.log.append(await attempt("", call, self._updates.next(), 10))
            assert self.log[-1].is_fine


@asynccontextmanager
async def callers_of(url: str, log: Path, updates: Updates) -> AsyncIterator[Callers]:
    async with AsyncExitStack() as stack:
        base_url = stack.enter_context(service.running(url, log)).base_url
        calls = [await stack.enter_async_context(each(base_url)) for each in CALLERS.values()]
        watch = await stack.enter_async_context(watching(base_url))
        yield Callers(calls, watch, updates)


async def test_a_database_made_read_only(tmp_path: Path, trial: Trial) -> None:
    times = trial.times(1, 5)
    with cluster.running() as postgres:
        async with callers_of(postgres.url, tmp_path / "log", Updates(postgres.url)) as callers:
            await callers.are_served()
            for _ in range(times):
                postgres.configure("default_transaction_read_only", "on")
                await callers.are_refused()
                postgres.configure("default_transaction_read_only", "off")
                await callers.are_served()
        lost = checker.losses(postgres.url, callers.log)
    trial.report(times, len(lost), "")
    assert lost == []


async def test_a_standby_as_the_only_server(tmp_path: Path, trial: Trial) -> None:
    with cluster.running() as primary:
        updates = Updates(primary.url)
        with primary.standby() as standby:
            async with callers_of(standby.url, tmp_path / "log", updates) as callers:
                await callers.are_refused(by_standby=True)
                await asyncio.to_thread(primary.kill)
                await callers.are_refused(by_standby=True)
                await asyncio.to_thread(standby.promote)
                await callers.are_served()
            lost = checker.losses(standby.url, callers.log)
    trial.report(1, len(lost), "promoted")
    assert lost == []
