"""``listings tail``."""

import asyncio
import errno
import os
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from server.cli.errors import reported
from server.cli.signals import exit_on_interrupt
from server.observability import logging
from server.settings import Settings

if TYPE_CHECKING:
    from persistence.history import EventFilter, PaymentHistory
    from persistence.models import PaymentEvent
    from persistence.positions import Position
    from persistence.status_words import StatusWords
    from persistence.watch import ChangeFeed

_RETRY_SECONDS: Final = 0.5


@click.command("tail")
@click.option("--order", "orders", type=int, multiple=True, help="Of this order; repeatable.")
@click.option(
    "--storefront", "storefronts", type=int, multiple=True, help="Of this storefront; repeatable."
)
@click.option(
    "-n", "last", type=click.IntRange(0, 10_000), default=0, help="First print the last N changes."
)
@click.option("--json", "as_json", is_flag=True, help="An OrderPaymentEvent in JSON a line.")
@click.option("--full", is_flag=True, help="Do not mask identifiers of payments.")
def tail_command(
    orders: tuple[int, ...],
    storefronts: tuple[int, ...],
    last: int,
    *,
    as_json: bool,
    full: bool,
) -> None:
    """Print each change of a payment once it is committed, until Ctrl-C.

    Of all orders, unless some are named. A line has the local time, the order, the state before and
    after, and what has changed; identifiers are masked as in the log. JSON has them as they are. It
    goes on after PostgreSQL was away, and ends with 1 when the history is not the same any more.
    """
    from persistence.history import EventFilter
    from server.cli import tail_lines
    from server.process.database import owner_url
    from server.process.status_words import read_status_words

    exit_on_interrupt()
    logging.configure(form=logging.CONSOLE, stream=sys.stderr)
    wanted = EventFilter(
        frozenset(orders), frozenset(storefronts), all_orders=not (orders or storefronts)
    )
    shown = tail_lines.json_line if as_json else partial(tail_lines.line, full=full)
    with reported():
        settings = Settings.read()
        words = read_status_words(settings)
        with owner_url(settings) as url:
            asyncio.run(_tail(settings, url, words, wanted, last, shown))


async def _tail(  # noqa: PLR0913, PLR0917 - what the command line has
    settings: Settings,
    url: str,
    words: "StatusWords",
    wanted: "EventFilter",
    last: int,
    shown: "Callable[[PaymentEvent], str]",
) -> None:
    from persistence.history import PaymentHistory
    from persistence.schema import require_current
    from persistence.watch import ChangeFeed
    from server.process.database import pool

    async with pool(settings, url, eager=True) as database:
        await require_current(database)
        history = PaymentHistory(database, words)
        feed = ChangeFeed(history, url, connect_timeout=settings.connect_timeout)
        async with feed, _until_closed(sys.stdout.fileno()):
            async for event in followed(feed, history, wanted, last):
                click.echo(shown(event))


async def followed(
    feed: "ChangeFeed", history: "PaymentHistory", wanted: "EventFilter", last: int
) -> "AsyncGenerator[PaymentEvent]":
    """Yield the last events, then each one from now on, without end.

    After a failure that may pass, it goes on from the last position. Raises any other
    PersistenceError.
    """
    from persistence.errors import (
        DatabaseTimeout,
        DatabaseUnavailable,
        TransactionConflict,
        WatcherTooSlow,
    )
    from persistence.models import PaymentEvent

    position: Position | None = None
    while True:
        try:
            async with aclosing(feed.watch(wanted, position)) as stream:
                async for event, reached in stream:
                    position = reached
                    if last:  # those before the first message, which says where it begins
                        earlier = await history.latest_events(wanted, last, reached.seen)
                        last = 0
                        for each in earlier:
                            yield each
                    if isinstance(event, PaymentEvent):
                        yield event
        except (DatabaseUnavailable, DatabaseTimeout, TransactionConflict, WatcherTooSlow):
            await asyncio.sleep(_RETRY_SECONDS)


@asynccontextmanager
async def _until_closed(output: int) -> AsyncIterator[None]:
    """Raise BrokenPipeError in the context once ``output`` is a pipe that its reader has closed.

    A write would raise it, but there may be none for hours.
    """
    if not stat.S_ISFIFO(os.fstat(output).st_mode):
        yield
        return
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as writing:

            def closed() -> None:
                loop.remove_reader(output)
                writing.reschedule(loop.time())

            loop.add_reader(output, closed)  # epoll reports an error of a pipe as readable
            try:
                yield
            finally:
                loop.remove_reader(output)
    except TimeoutError:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
