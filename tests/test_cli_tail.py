"""``listings tail``, run as a process: on a terminal, into a pipe, and while PostgreSQL is away."""

import json
import os
import re
import select
import signal
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final

import psycopg
import pytest

from persistence.errors import DatabaseUnavailable
from persistence.history import EventFilter, PaymentHistory
from persistence.models import PaymentEvent
from persistence.positions import Snapshot
from server.cli.tail import followed
from server.gen.listings.v1.orders_pb import OrderPaymentEvent
from tests.support import databases
from tests.support.command_line import listings, on_terminal, started
from tests.support.feeds import feed_of
from tests.support.fork_server import Process
from tests.support.orders import Orders
from tests.support.waiting import eventually

SECONDS: Final = 20
LONG: Final = "cs_test_0123456789abcdef"


class Pipe:
    """What a command has written into a pipe."""

    errors: "Pipe"
    """Of that to stdout: that to stderr."""

    def __init__(self, process: Process, descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._rest = b""

    def line(self) -> str:
        """Wait for the next line, and return it."""
        while b"\n" not in self._rest:
            assert select.select([self._descriptor], [], [], SECONDS)[0], "no line in time"
            chunk = os.read(self._descriptor, 65536)
            assert chunk, "the command has ended"
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.line())
        return event

    def is_quiet(self) -> bool:
        """Whether there is nothing to read."""
        return not self._rest and not select.select([self._descriptor], [], [], 0)[0]

    def is_at_end(self) -> bool:
        """Whether nothing was written, and nothing will be."""
        return not self._rest and not os.read(self._descriptor, 1)

    def close(self) -> None:
        os.close(self._descriptor)


@contextmanager
def tail(url: str, *options: str, **last: object) -> Iterator[Pipe]:
    """Run ``listings tail`` until it follows the changes.

    It has printed a last one then, of an order with the values ``last``.
    """
    Orders(url).add(payment_status="paid", **last)
    (ours, theirs), (errors, their_errors) = os.pipe(), os.pipe()
    try:
        with started(
            "tail", "-n", "1", *options, url=url, stdout=theirs, stderr=their_errors
        ) as process:
            os.close(theirs)
            os.close(their_errors)
            pipe = Pipe(process, ours)
            pipe.errors = Pipe(process, errors)
            pipe.line()
            yield pipe
    finally:
        os.close(errors)
        with suppress(OSError):  # a test has closed it
            os.close(ours)


def paid(url: str, order_id: int, session: str = LONG) -> None:
    Orders(url).change(order_id, payment_status="paid", payment_session_id=session)


def test_lines_for_people(database_url: str) -> None:
    orders = Orders(database_url)
    with tail(database_url) as printed:
        order_id = orders.add(payment_status="authorized", payment_provider="stripe")
        paid(database_url, order_id)
        assert re.fullmatch(
            rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  order {order_id} +- → AUTHORIZED +"
            r"provider=stripe status=authorized by_hand=\w+",
            printed.line(),
        )
        assert re.fullmatch(
            rf".*  order {order_id} +AUTHORIZED → PAID +session=cs_t…cdef status=paid by_hand=\w+",
            printed.line(),
        )
        orders.change(order_id, payment_session_id=None, payment_transaction_id="\x1b[31m\n")
        assert r"session=- transaction=…" in printed.line()
        printed.process.send_signal(signal.SIGINT)
        assert printed.process.wait(SECONDS) == 0


def test_full_lines_cannot_control_a_terminal(database_url: str) -> None:
    orders = Orders(database_url)
    with tail(database_url, "--full") as printed:
        order_id = orders.add(payment_status="paid", payment_session_id=LONG)
        assert f"session={LONG}" in printed.line()
        orders.change(order_id, payment_transaction_id="\x1b[31m\n")
        assert r"transaction=\x1b[31m\n" in printed.line()


def test_json_is_that_of_the_contract(database_url: str) -> None:
    with tail(database_url, "--json") as printed:
        order_id = Orders(database_url).add(payment_status="paid", payment_session_id=LONG)
        event = OrderPaymentEvent.from_json(printed.line())
        assert event.order_id == order_id
        assert event.after is not None
        assert event.after.payment_session_id == LONG
        printed.process.send_signal(signal.SIGTERM)
        assert printed.process.wait(SECONDS) == 0


def test_some_orders_and_storefronts(database_url: str) -> None:
    orders = Orders(database_url)
    first, other = orders.add(), orders.add()
    with tail(
        database_url, "--json", "--order", str(first), "--storefront", "9", storefront_id=9
    ) as printed:
        paid(database_url, other)
        paid(database_url, first, "cs_1")
        of_storefront = orders.add(storefront_id=9, payment_status="paid")
        assert {printed.event()["orderId"] for _ in range(2)} == {str(first), str(of_storefront)}
        assert printed.is_quiet()


def test_the_last_ones_come_first_and_each_once(database_url: str) -> None:
    orders = Orders(database_url)
    ids = [orders.add(payment_status="paid") for _ in range(5)]
    with tail(database_url, "--json", "-n", "4") as printed:
        assert [printed.event()["orderId"] for _ in range(3)] == [
            *(str(each) for each in ids[3:]),
            str(ids[-1] + 1),
        ]
        paid(database_url, ids[0], "cs_2")
        assert printed.event()["orderId"] == str(ids[0])
        assert printed.is_quiet()


class WrittenMeanwhile(PaymentHistory):
    """A history to which an event is added while its last ones are read."""

    url = ""

    async def latest_events(
        self, wanted: EventFilter, limit: int, upto: Snapshot
    ) -> list[PaymentEvent]:
        Orders(self.url).add(payment_status="refunded")
        return await super().latest_events(wanted, limit, upto)


@pytest.mark.anyio
async def test_what_is_committed_while_the_last_ones_are_read_comes_once(database_url: str) -> None:
    """With the stream, once it is durable: the last ones are those from before."""
    orders = Orders(database_url)
    before = orders.add(payment_status="paid")
    async with feed_of(WrittenMeanwhile, database_url) as (opened, history):
        history.url = database_url
        async with aclosing(followed(opened, history, EventFilter(all_orders=True), 1)) as events:
            seen = [(await anext(events)).order_id]
            committed = orders.value("SELECT max(order_id) FROM order_payment_events")
            assert committed == before + 1
            seen.append((await anext(events)).order_id)
            after = orders.add(payment_status="paid")
            seen.append((await anext(events)).order_id)
    assert seen == [before, before + 1, after]


class AwayAtFirst(PaymentHistory):
    """A history that cannot be read the first time."""

    is_away = True

    async def latest_events(
        self, wanted: EventFilter, limit: int, upto: Snapshot
    ) -> list[PaymentEvent]:
        if self.is_away:
            self.is_away = False
            raise DatabaseUnavailable("away")
        return await super().latest_events(wanted, limit, upto)


@pytest.mark.anyio
async def test_a_watch_that_fails_is_begun_again(database_url: str) -> None:
    order_id = Orders(database_url).add(payment_status="paid")
    async with feed_of(AwayAtFirst, database_url) as (opened, history):
        async with aclosing(followed(opened, history, EventFilter(all_orders=True), 1)) as events:
            assert (await anext(events)).order_id == order_id
        assert not history.is_away


def test_it_goes_on_after_the_database_was_away(database_url: str) -> None:
    order_id = Orders(database_url).add()
    with tail(database_url, "--json") as printed:
        paid(database_url, order_id, "cs_1")
        printed.event()
        with databases.unreachable(database_url):
            assert "warning" in printed.errors.line()  # in the log
        paid(database_url, order_id, "cs_2")
        assert printed.event()["after"]["paymentSessionId"] == "cs_2"


def test_a_reader_that_has_enough_ends_it_in_silence(database_url: str) -> None:
    order_id = Orders(database_url).add()
    with tail(database_url) as printed:
        paid(database_url, order_id)
        assert "PAID" in printed.line()
        printed.close()  # and nothing is written any more
        assert printed.process.wait(SECONDS) == 1
        assert printed.errors.is_at_end()


def test_a_terminal(database_url: str) -> None:
    Orders(database_url).add(payment_status="paid")
    with on_terminal("tail", "-n", "1", url=database_url) as (process, seen):
        eventually(lambda: "→ PAID" in seen(), SECONDS)
        Orders(database_url).add(payment_status="refunded")
        eventually(lambda: "→ REFUNDED" in seen(), SECONDS)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        assert "Aborted" not in seen()


def test_a_history_that_is_another_one(database_url: str) -> None:
    """Where its last event is gone, it ends, and does not go on in silence."""
    order_id = Orders(database_url).add()
    with tail(database_url, "--json") as printed:
        paid(database_url, order_id)
        printed.event()
        with psycopg.connect(database_url) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("DELETE FROM order_payment_events")
        lines = iter(printed.errors.line, "")
        assert "lost events that were seen" in next(
            line for line in lines if line.startswith("Error: ")
        )
        assert printed.process.wait(SECONDS) == 1


def test_without_migrations(empty_database_url: str) -> None:
    done = listings("tail", url=empty_database_url)
    assert done.returncode == 1
    assert "listings migrate up" in done.stderr
