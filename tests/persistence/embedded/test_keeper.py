"""The embedded PostgreSQL is started again when it was killed while it is in use."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from persistence.embedded import Keeper, running
from tests.support.embedded import alive, ask, postmaster, processes, servers_below, signal_all
from tests.support.waiting import eventually, eventually_async

pytestmark = pytest.mark.anyio

AGAIN = "the embedded PostgreSQL had ended, and was started again"
FAILS = "the embedded PostgreSQL does not start"


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
    server = postmaster(data_dir)
    kill(data_dir)
    await eventually_async(lambda: not alive(server))


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
