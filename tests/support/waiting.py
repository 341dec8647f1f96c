"""Waiting for a condition that another process fulfils."""

import asyncio
import time
from collections.abc import Callable

import psycopg

_PAUSE = 0.005  # seconds between two polls


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(_PAUSE)


async def eventually_async(condition: Callable[[], object], seconds: float = 20) -> None:
    """Do so without blocking the event loop."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the state may be that of another process
            await asyncio.sleep(_PAUSE)


def lock_waits(url: str) -> int:
    """Return how many statements on the database at ``url`` wait for a lock."""
    with psycopg.connect(url, autocommit=True) as observer:
        row = observer.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
    assert row is not None
    return int(row[0])
