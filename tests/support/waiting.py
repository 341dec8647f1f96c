"""Waiting for a condition that another process fulfils."""

import asyncio
import time
from collections.abc import Callable, Iterator

import psycopg

_LONGEST_PAUSE = 0.04


def _pauses() -> Iterator[float]:
    """Yield the seconds from poll to poll. They grow: a poll may cost a connection."""
    pause = 0.005
    while True:
        yield pause
        pause = min(pause * 1.3, _LONGEST_PAUSE)


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    for pause in _pauses():
        if condition():
            return
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(pause)


async def eventually_async(condition: Callable[[], object], seconds: float = 20) -> None:
    """Do so without blocking the event loop."""
    async with asyncio.timeout(seconds):
        for pause in _pauses():
            if condition():
                return
            await asyncio.sleep(pause)


def lock_waits(url: str) -> int:
    """Return how many statements on the database at ``url`` wait for a lock."""
    with psycopg.connect(url, autocommit=True) as observer:
        row = observer.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def sessions(url: str) -> list[str]:
    """Return the ``application_name`` of each session on the database at ``url``."""
    with psycopg.connect(url, autocommit=True) as observer:
        rows = observer.execute(
            "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
        ).fetchall()
    return [name for (name,) in rows]
