"""A time limit differs from ``asyncio.timeout`` in nothing but the exception that it raises."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import product
from typing import TypeAlias

import pytest

from persistence.errors import DatabaseTimeout
from persistence.time_limit import TimeLimit

pytestmark = pytest.mark.anyio

Limit: TypeAlias = Callable[[float], AbstractAsyncContextManager[None]]

NOW, LATER = 0.0, 60.0


@asynccontextmanager
async def ours(seconds: float) -> AsyncIterator[None]:
    with TimeLimit(seconds):
        yield


@asynccontextmanager
async def of_asyncio(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DatabaseTimeout() from error


async def ending(  # noqa: PLR0913 - what there is to vary
    limit: Limit, outer: float, inner: float, cancels: int, *, fails: bool, before: bool
) -> object:
    """Return how a task with two limits ends, and how often it counts as cancelled then.

    ``before`` says whether it has been cancelled before them, too.
    """
    waiting = asyncio.Event()

    async def work() -> None:
        async with limit(outer), limit(inner):
            waiting.set()
            try:
                await asyncio.sleep(0.01 if NOW in (outer, inner) or cancels else 0)
            except asyncio.CancelledError:
                if fails:
                    raise LookupError from None
                raise

    async def counted() -> tuple[str, int]:
        task = asyncio.current_task()
        assert task is not None
        if before:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        try:
            await work()
        except BaseException as error:
            return type(error).__name__, task.cancelling()
        return "done", task.cancelling()

    task = asyncio.create_task(counted())
    await waiting.wait()
    for _ in range(cancels):
        task.cancel()
    return await task


@pytest.mark.parametrize(
    ("outer", "inner", "cancels", "fails", "before"),
    list(product((NOW, LATER), (NOW, LATER), (0, 1, 2), (False, True), (False, True))),
)
async def test_it_ends_as_with_asyncio(
    outer: float, inner: float, cancels: int, fails: bool, before: bool
) -> None:
    expected = await ending(of_asyncio, outer, inner, cancels, fails=fails, before=before)
    assert await ending(ours, outer, inner, cancels, fails=fails, before=before) == expected


async def test_its_time_ends_with_it() -> None:
    with TimeLimit(0.01):
        pass
    await asyncio.sleep(0.05)
