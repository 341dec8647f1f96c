"""The embedded PostgreSQL is started again when it was killed while it is in use."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest

from persistence.embedded import Keeper, keeper, running, server
from tests.support.embedded import alive, ask, postmaster, processes, servers_below, signal_all
from tests.support.waiting import eventually, eventually_async

pytestmark = pytest.mark.anyio

AGAIN = "the embedded PostgreSQL had ended, and was started again"
FAILS = "the embedded PostgreSQL does not run"


def kill_postmaster(data_dir: Path) -> None:
    os.kill(postmaster(data_dir), signal.SIGKILL)


def kill_all(data_dir: Path) -> None:
    signal_all(processes(data_dir), signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        return ask(url, "SELECT answer FROM kept") == 42
    except psycopg.OperationalError:
        return False


def has_logged(caplog: pytest.LogCaptureFixture, times: int) -> bool:
    return caplog.messages.count(AGAIN) >= times


async def killed(kill: Callable[[Path], None], data_dir: Path) -> None:
    pid = postmaster(data_dir)
    kill(data_dir)
    await eventually_async(lambda: not alive(pid))


@pytest.mark.parametrize("kill", [kill_postmaster, kill_all])
async def test_one_of_several_users_starts_a_killed_server_again(
    used_dir: Path, caplog: pytest.LogCaptureFixture, kill: Callable[[Path], None]
) -> None:
    with running(used_dir) as url:
        ask(url, "DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 42 AS answer")
        async with Keeper(used_dir), Keeper(used_dir), Keeper(used_dir):
            for times in (1, 2):
                await killed(kill, used_dir)
                await eventually_async(lambda: answers(url))
                await eventually_async(partial(has_logged, caplog, times))
    assert caplog.messages == [AGAIN] * 2
    eventually(lambda: not list(servers_below(used_dir)))


@pytest.mark.parametrize("seconds", [0, 0.6])
async def test_no_server_is_left_when_the_last_user_stops_during_a_restart(
    used_dir: Path, seconds: float
) -> None:
    def stop() -> None:
        """End the program's event loop, and with it the threads, before it leaves the server."""
        with running(used_dir):
            asyncio.run(use())

    async def use() -> None:
        async with Keeper(used_dir):
            kill_postmaster(used_dir)
            await asyncio.sleep(seconds)

    await asyncio.to_thread(stop)
    await eventually_async(lambda: not list(servers_below(used_dir)))
    await asyncio.sleep(0.1)
    assert not list(servers_below(used_dir))


async def test_a_server_that_does_not_start_is_tried_again(
    used_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(used_dir) as url:
        ask(url, "DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 42 AS answer")
        version = used_dir / "pgdata" / "PG_VERSION"
        async with Keeper(used_dir):
            version.rename(used_dir / "pgdata" / "moved")
            kill_postmaster(used_dir)
            await eventually_async(lambda: sum(FAILS in each for each in caplog.messages) >= 2)
            (used_dir / "pgdata" / "moved").rename(version)
            await eventually_async(lambda: answers(url))
    failures = [each for each in caplog.records if FAILS in each.getMessage()]
    assert all(each.levelno == logging.ERROR for each in failures)
    assert "trying again in 1 s" in failures[0].getMessage()
    assert "trying again in 2 s" in failures[1].getMessage()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_server_that_was_shut_down_stays_so(
    used_dir: Path, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    with running(used_dir) as url:
        async with Keeper(used_dir):
            pid = postmaster(used_dir)
            os.kill(pid, number)
            await eventually_async(lambda: not alive(pid))
            await eventually_async(lambda: len(caplog.messages) >= 2)
            assert all("it was shut down, not killed" in each for each in caplog.messages)
            assert not list(servers_below(used_dir))
        with running(used_dir):
            assert ask(url, "SELECT 1") == 1


async def test_a_start_under_way_ends_before_the_keeper(
    used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last user might stop the server before that thread starts one."""
    looks, may_go_on = threading.Event(), threading.Event()

    def held(data_dir: Path) -> bool:
        looks.set()
        assert may_go_on.wait(20)
        return server.revive(data_dir)

    monkeypatch.setattr(keeper, "revive", held)
    async with asyncio.timeout(30):
        context = running(used_dir)
        await asyncio.to_thread(context.__enter__)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(Keeper(used_dir))
            kill_postmaster(used_dir)
            await asyncio.to_thread(looks.wait)
            leaving = asyncio.create_task(stack.pop_all().aclose())
            await asyncio.wait([leaving], timeout=0.2)
            has_left = leaving.done()
            may_go_on.set()
            await leaving
        await asyncio.to_thread(context.__exit__, None, None, None)
    assert not has_left
    assert not list(servers_below(used_dir))


async def test_any_error_is_logged_and_tried_again(
    used_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [psutil.AccessDenied(1), ValueError()]

    def failing(data_dir: Path) -> psutil.Process | None:
        if faults:
            raise faults.pop()
        return server.postmaster(data_dir)

    with running(used_dir) as url:
        ask(url, "DROP TABLE IF EXISTS kept; CREATE TABLE kept AS SELECT 42 AS answer")
        monkeypatch.setattr(keeper, "postmaster", failing)
        async with Keeper(used_dir):
            await eventually_async(lambda: not faults)
            kill_postmaster(used_dir)
            await eventually_async(lambda: answers(url))
    assert "trying again in 1 s: ValueError" in caplog.messages[0]
    assert "trying again in 2 s: " in caplog.messages[1]
