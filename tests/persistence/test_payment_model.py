"""Random lives of a few orders: rows, history, refused events and answers agree with the model."""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings

from persistence import errors
from persistence.history import PaymentHistory
from persistence.models import Origin
from persistence.orders import OrderRepository
from persistence.payment_updates import Guard as ServiceGuard
from tests.support import by_model, databases, in_history, on_record
from tests.support.orders import Orders
from tests.support.payment_model import Request
from tests.support.payment_shop import (
    ETAG_MISMATCH,
    NOT_FOUND,
    OK,
    REPLAYED,
    Guard,
    Shop,
    tells_of_money,
)
from tests.support.payment_words import plain
from tests.support.payments_given import (
    CURRENT,
    NAMES,
    Again,
    AtOnce,
    ByHand,
    Call,
    Send,
    lives,
)

RULES: Final = by_model.rules()
MISSING: Final = NAMES[-1]

_PAID: Final = Request("paid", "allsecure", "s1", "i1")
SHADOWED: Final = [
    Send(Call("a", _PAID, Guard.ON), None),
    Send(Call("a", Request("paid", payment_session_id="s2"), Guard.SHADOW), None),
    Send(Call("a", Request("refunded", None, "s3", "i3"), Guard.ON), None),
]
"""A second payment that the shadow writes, and a refund with an id of its own."""


class Answered(NamedTuple):
    """A call that has ended, with the request as it was sent, and the answer."""

    call: Call
    request: Request
    answer: str


@dataclass
class System:
    """The repository, called by a client that may cancel."""

    url: str
    orders: Orders
    alone: Mapping[Guard, OrderRepository]
    """With a single connection: the next call waits until a cancelled one has released it."""
    together: Mapping[Guard, OrderRepository]
    history: PaymentHistory
    records: psycopg.Connection[Any]
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def system(runner: asyncio.Runner) -> Iterator[System]:
    with databases.clone() as url:
        with psycopg.connect(url, autocommit=True) as connection:  # it is done sooner
            name = connection.info.dbname
            connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        pools = [databases.pool(url, max_connections=number) for number in (1, 4)]
        for pool in pools:
            runner.run(pool.__aenter__())
        alone, together = (
            {each: OrderRepository(pool, guard=ServiceGuard(each.value)) for each in Guard}
            for pool in pools
        )
        with psycopg.connect(url, autocommit=True) as records:
            yield System(url, Orders(url), alone, together, PaymentHistory(pools[0]), records)
        for pool in pools:
            runner.run(pool.__aexit__(None, None, None))


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=lives)
@example(steps=SHADOWED)
def test_rows_history_refused_events_and_answers_agree_with_the_model(
    system: System, runner: asyncio.Runner, steps: list[Any]
) -> None:
    runner.run(Life(system).live(steps))


class Life:
    """The orders of one example, which share the database with those of the others."""

    def __init__(self, system: System) -> None:
        self.system = system
        ids = [system.orders.add(), system.orders.add()]
        self.ids = dict(zip(NAMES, (*ids, 2**62 + ids[0]), strict=True))
        rows = {name: system.orders.row(self.ids[name]) for name in NAMES if name != MISSING}
        orders = {name: by_model.order(row) for name, row in rows.items()}
        self.shop = Shop(orders, RULES)
        self.sent: list[Call] = []
        self.etags: dict[str, list[str]] = {name: [_etag(row)] for name, row in rows.items()}
        """The etags that each order has had, by the number of changes before."""
        self.recorded: set[on_record.Digest] = set()
        """What distinguishes the refused events so far."""

    async def live(self, steps: list[Any]) -> None:
        for step in steps:
            match step:
                case ByHand():
                    self.change_by_hand(step)
                case Send():
                    self.sent.append(step.call)
                    await self.call(step.call, step.patience)
                case Again() if self.sent:
                    call = self.sent[-1 - step.back % len(self.sent)]
                    call = call._replace(request=call.request._replace(**step.changes))
                    self.sent.append(call)
                    await self.call(call, step.patience)
                case AtOnce():
                    self.sent += step.calls
                    await self.call_at_once(step.calls)
        await self.check_history()
        self.check_money()

    def change_by_hand(self, change: ByHand) -> None:
        before = self.rows()
        self.system.orders.change(self.ids[change.order], **change.columns)
        self.shop.change_by_hand(change.order, **change.columns)
        self.check(before)

    async def call(self, call: Call, patience: int | None) -> None:
        before, request = self.rows(), self.request(call)
        repository = self.system.alone[call.guard]
        answer = await self.answer(repository, call, request, patience)
        if answer is None:
            # A cancelled update is fully written or not at all, and its refusal recorded or not.
            await self.system.alone[Guard.ON].get(self.ids[NAMES[0]])
            ledger = await self.ledger()
            self.shop = next(
                shop
                for shop in self.after_cancelling(call, request)
                if self.is_so(shop) and ledger == in_history.in_model(shop)
            )
            self.check(before)
            await self.call(call, None)
            return
        self.shop.guard = call.guard
        assert answer == self.shop.update(call.order, request)
        self.check(before)

    def after_cancelling(self, call: Call, request: Request) -> Iterator[Shop]:
        yield self.shop
        done = self.shop.copy()
        done.guard = call.guard
        done.update(call.order, request)
        yield done
        if call.guard is Guard.SHADOW:
            unrecorded = self.shop.copy()
            unrecorded.guard = Guard.OFF
            unrecorded.update(call.order, request)
            yield unrecorded
        raise AssertionError("a cancelled call is written in part")

    async def call_at_once(self, calls: tuple[Call, ...]) -> None:
        """Make the calls together. Some order of them explains the answers, and what is left."""
        requests = [self.request(call) for call in calls]
        answers = await asyncio.gather(
            *(
                self.answer(self.system.together[call.guard], call, request, None)
                for call, request in zip(calls, requests, strict=True)
            )
        )
        ended = list(map(Answered, calls, requests, map(str, answers)))
        ledger = await self.ledger()
        for seen, turns in itertools.product(
            (None, len(self.shop.refused)), itertools.permutations(ended)
        ):
            shop = replace(self.shop.copy(), seen=seen)
            if _explains(shop, turns) and self.is_so(shop) and ledger == in_history.in_model(shop):
                self.shop = replace(shop, seen=None)
                break
        else:
            raise AssertionError(f"no order of these explains them: {ended}, {ledger}")
        for name, row in self.rows().items():
            unseen = self.shop.orders[name].changes - len(self.etags[name])
            if unseen >= 0:
                self.etags[name] += ["unseen"] * unseen + [_etag(row)]
        self.recorded = set(self.on_record())

    async def answer(
        self, repository: OrderRepository, call: Call, request: Request, patience: int | None
    ) -> str | None:
        """Return the answer as the model does; None if the call was cancelled before it."""
        origin = Origin(f"request {next(self.system.numbers)}")
        update = by_model.update(request, self.etag(call, request))
        made = asyncio.ensure_future(
            repository.update_payment_info(self.ids[call.order], update, origin)
        )
        for _ in range(patience or 0):
            await asyncio.sleep(0)
        if patience is not None and not made.done():
            made.cancel()
        try:
            return REPLAYED if (await made).replayed else OK
        except asyncio.CancelledError:
            return None
        except errors.OrderNotFound:
            return NOT_FOUND
        except errors.EtagMismatch:
            return ETAG_MISMATCH
        except (errors.IdempotencyKeyReused, errors.PaymentEventRefused) as refusal:
            return str(refusal.reason.value)

    def request(self, call: Call) -> Request:
        """Return the request with a key of this example alone, and the model's etag."""
        key, etag = call.request.payment_idempotency_key, None
        if call.request.etag is not None:
            order = self.shop.orders.get(call.order)
            is_current = order is not None and call.request.etag == CURRENT
            etag = order.etag if order is not None and is_current else "stale"
        own_key = key and f"{self.ids[NAMES[0]]} {key}"
        return call.request._replace(payment_idempotency_key=own_key, etag=etag)

    def etag(self, call: Call, request: Request) -> str | None:
        """Return the service's etag for that of the model."""
        had = self.etags.get(call.order, ["0", "1"])
        if request.etag is None:
            return None
        if request.etag == "stale":
            return had[-2] if len(had) > 1 else "ffff"
        return had[-1]

    def rows(self) -> dict[str, dict[str, Any]]:
        return {name: self.system.orders.row(self.ids[name]) for name in self.shop.orders}

    def is_so(self, shop: Shop) -> bool:
        """Return whether rows, etags and refused events are those of ``shop``."""
        return all(
            by_model.order(row) == shop.orders[name]._replace(changes=0)
            and (_etag(row) == self.etags[name][-1])
            == (shop.orders[name].changes < len(self.etags[name]))
            for name, row in self.rows().items()
        ) and _without_order(self.on_record()) == _without_order(on_record.in_model(shop))

    def on_record(self) -> dict[on_record.Digest, on_record.Entry]:
        names = {order_id: name for name, order_id in self.ids.items()}
        return on_record.in_table(self.system.records, names)

    def check(self, before: dict[str, dict[str, Any]]) -> None:
        """Check that all is as the model has it, after one call or change by hand."""
        rows = self.rows()
        for name, row in rows.items():
            order, old = self.shop.orders[name], before[name]
            assert by_model.order(row) == order._replace(changes=0)
            if order.changes == len(self.etags[name]):
                assert _etag(row) not in self.etags[name]
                self.etags[name].append(_etag(row))
            assert _etag(row) == self.etags[name][-1]
            since, since_before = row["payment_status_since"], old["payment_status_since"]
            if _etag(row) == _etag(old):
                assert by_model.order(row) == by_model.order(old)
                assert since_before in {None, since}
                continue
            assert (since != since_before) == (since_before is None or self.has_moved(name))
        assert self.is_so(self.shop)
        recorded, expected = self.on_record(), on_record.in_model(self.shop)
        for key in recorded.keys() - self.recorded:
            assert recorded[key] == expected[key]
        self.recorded = set(recorded)

    def has_moved(self, name: str) -> bool:
        """Return whether the order has a new state, or by hand a new word, from its last event."""
        last = [each for each in self.shop.history if each.order == name][-1]
        if last.request == Request():
            return last.before.payment_status != last.after.payment_status
        return last.before.payment_state != last.after.payment_state

    async def ledger(self) -> dict[str, list[tuple[object, ...]]]:
        """Return the history of each order, as ``in_history.in_model`` does."""
        events = self.system.history.list_events
        return {
            name: [in_history.entry(each) for each in await events(self.ids[name], 1_000)]
            for name in self.shop.orders
        }

    async def check_history(self) -> None:
        assert await self.ledger() == in_history.in_model(self.shop)

    def check_money(self) -> None:
        """Check that each word that tells of money is in the history, or among the refused."""
        names = {order_id: name for name, order_id in self.ids.items()}
        rows = self.system.records.execute(
            "SELECT order_id, payment_status, payment_transaction_id FROM refused_payment_events"
            " WHERE order_id = ANY(%(ids)s)"
            " UNION SELECT order_id, payment_status_after, payment_transaction_id_after"
            " FROM order_payment_events WHERE order_id = ANY(%(ids)s)",
            {"ids": list(names)},
        ).fetchall()
        # Of equal refused events, the first one is on record: as it was spelled.
        words = {(names[order_id], word and plain(word)) for order_id, word, _ in rows}
        transactions = {(names[order_id], transaction) for order_id, _, transaction in rows}
        for call in self.sent:
            word, transaction = call.request.payment_status, call.request.payment_transaction_id
            if (
                word is not None
                and call.order != MISSING
                and call.request.etag is None
                and tells_of_money(word, RULES.words)
            ):
                assert (call.order, plain(word)) in words
                assert transaction is None or (call.order, transaction) in transactions


def _without_order(entries: dict[on_record.Digest, on_record.Entry]) -> dict[object, object]:
    """Leave out the order then: of calls at once, it may be that before another's write."""
    return {key: entry._replace(found=None) for key, entry in entries.items()}


def _explains(shop: Shop, turns: tuple[Answered, ...]) -> bool:
    """Tell whether ``shop`` gives the answers, in this order of the calls."""
    for each in turns:
        shop.guard = each.call.guard
        if shop.update(each.call.order, each.request) != each.answer:
            return False
    return True


def _etag(row: Mapping[str, Any]) -> str:
    return f"{int(row['payment_version'] or 0):x}"
