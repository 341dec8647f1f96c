"""Random sequences of updates of a few orders, compared with a model of the contract."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persistence import errors
from persistence.history import PaymentHistory
from persistence.models import PAYMENT_COLUMNS, Origin
from persistence.orders import OrderRepository
from tests.support import databases
from tests.support.orders import Orders

Params: TypeAlias = dict[str, str]
State: TypeAlias = dict[str, str | None]

KEY: Final = "payment_idempotency_key"
EMPTY: Final[State] = dict.fromkeys(PAYMENT_COLUMNS) | {"payment_status": "pending"}

# The transitions of the contract, written independently: each status may also be repeated.
UNSETTLED: Final = {
    *("pending", "processing", "requires_action", "authorized"),
    *("failed", "cancelled", "expired"),
}
NEXT: Final = dict.fromkeys(UNSETTLED, UNSETTLED | {"paid", "partially_refunded", "refunded"}) | {
    "paid": {"partially_refunded", "refunded", "disputed"},
    "partially_refunded": {"refunded", "disputed"},
    "disputed": {"paid", "charged_back"},
    "refunded": set(),
    "charged_back": set(),
}


class Request(NamedTuple):
    order: int  # the index of one of the orders, or of one that does not exist
    params: Params


class Send(NamedTuple):
    """Send a request, and cancel it after ``patience`` turns of the event loop, if that is set."""

    request: Request
    patience: int | None


class SendAgain(NamedTuple):
    """Repeat one of the requests sent so far."""

    back: int
    patience: int | None


class Event(NamedTuple):
    before: State
    after: State
    key: str | None


@dataclass
class Model:
    """The expected state of each order. Answers are tuples, as ``answer`` returns them."""

    guarded: bool
    states: list[State]
    events: list[list[Event]] = field(default_factory=list)
    used: dict[str, Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.events = [[] for _ in self.states]

    def expected(self, request: Request) -> tuple[object, ...]:
        order, params = request
        key = params.get(KEY)
        if key in self.used:
            if self.used[key] != request:
                return ("key reused",)
            return ("replayed", self.states[order])
        if order == len(self.states):
            return ("not found",)
        state = self.states[order]
        current, new = state["payment_status"], params.get("payment_status")
        if (
            self.guarded
            and current in NEXT
            and new in NEXT
            and new not in {current, *NEXT[current]}
        ):
            return ("refused", current, new, NEXT[current] - {current})
        return ("applied", state | params)

    def apply(self, request: Request) -> None:
        order, params = request
        before = self.states[order]
        after = before | params
        if after != before:
            self.events[order].append(Event(before, after, params.get(KEY)))
        if key := params.get(KEY):
            self.used[key] = request
        self.states[order] = after


@dataclass
class System:
    """The repository, called by a client that may cancel."""

    orders: Orders
    guarded: OrderRepository
    unguarded: OrderRepository
    history: PaymentHistory
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def answer(
        self, repository: OrderRepository, order_id: int, params: Params, patience: int | None
    ) -> tuple[object, ...] | None:
        """Return the outcome of an update; None if it was cancelled first."""
        origin = Origin(f"request {next(self.numbers)}")
        call = asyncio.ensure_future(repository.update_payment_info(order_id, params, origin))
        for _ in range(patience or 0):
            await asyncio.sleep(0)
        if patience is not None and not call.done():
            call.cancel()
        try:
            update = await call
        except asyncio.CancelledError:
            return None
        except errors.OrderNotFound:
            return ("not found",)
        except errors.IdempotencyKeyReused:
            return ("key reused",)
        except errors.PaymentStatusRefused as refusal:
            return ("refused", refusal.current, refusal.new, set(refusal.allowed))
        state = {name: getattr(update.order, name) for name in PAYMENT_COLUMNS}
        return ("replayed" if update.replayed else "applied", state)

    def state(self, order_id: int) -> State:
        row = self.orders.row(order_id)
        return {name: row[name] for name in PAYMENT_COLUMNS}

    async def events(self, order_id: int) -> list[Event]:
        return [
            Event(
                {name: getattr(event, f"{name}_before") for name in PAYMENT_COLUMNS},
                {name: getattr(event, f"{name}_after") for name in PAYMENT_COLUMNS},
                event.idempotency_key,
            )
            for event in await self.history.list_events(order_id, 1_000)
        ]


_patience = st.none() | st.integers(0, 40)
_statuses = st.sampled_from([*NEXT, "paid", "pending", "on_hold"])


def _params(words: Any) -> st.SearchStrategy[Params]:
    fields: dict[str, st.SearchStrategy[str]] = dict.fromkeys(PAYMENT_COLUMNS, words)
    fields |= {"payment_status": _statuses, KEY: st.sampled_from("klmno")}
    some = st.sets(st.sampled_from(PAYMENT_COLUMNS), min_size=1)
    return some.flatmap(lambda names: st.fixed_dictionaries({n: fields[n] for n in sorted(names)}))


_requests = st.builds(Request, st.integers(0, 2), _params(st.sampled_from("ab")))
_steps = st.lists(
    st.builds(Send, _requests, _patience) | st.builds(SendAgain, st.integers(0, 30), _patience),
    min_size=20,
    max_size=60,
)


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
        # One connection: the next call waits until a cancelled one has released it.
        database = databases.pool(url, max_connections=1)
        runner.run(database.__aenter__())
        yield System(
            Orders(url),
            OrderRepository(database),
            OrderRepository(database, guard_status=False),
            PaymentHistory(database),
        )
        runner.run(database.__aexit__(None, None, None))


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=_steps, guarded=st.sampled_from([True, True, True, False]))
def test_answers_rows_and_ledger_agree_with_the_model(
    system: System, runner: asyncio.Runner, steps: list[Any], *, guarded: bool
) -> None:
    runner.run(_live(system, steps, guarded=guarded))


async def _live(system: System, steps: list[Any], *, guarded: bool) -> None:
    repository = system.guarded if guarded else system.unguarded
    ids = [system.orders.add(), system.orders.add()]
    model = Model(guarded, [dict(EMPTY) for _ in ids])
    sent: list[Request] = []
    for step in steps:
        if isinstance(step, Send):
            # The key is unique to this example: examples share the database.
            own = (
                {KEY: f"{ids[0]} {step.request.params[KEY]}"} if KEY in step.request.params else {}
            )
            request = Request(step.request.order, step.request.params | own)
            sent.append(request)
        elif sent:
            request = sent[-1 - step.back % len(sent)]
        else:
            continue
        order_id = ids[request.order] if request.order < len(ids) else 2**62
        expected = model.expected(request)
        answer = await system.answer(repository, order_id, request.params, step.patience)
        if answer is None:
            # A cancelled update is either fully written or not at all.
            await repository.get(ids[0])
            if expected[0] == "applied" and system.state(order_id) == expected[1]:
                model.apply(request)
            expected = model.expected(request)
            answer = await system.answer(repository, order_id, request.params, None)
        assert answer == expected
        if answer[0] == "applied":
            model.apply(request)
        if request.order < len(ids):
            assert system.state(order_id) == model.states[request.order]
    for number, each in enumerate(ids):
        events = await system.events(each)
        assert events == model.events[number]
        state = EMPTY
        for event in events:
            assert event.before == state
            if guarded and event.before["payment_status"] not in UNSETTLED | {"on_hold"}:
                assert event.after["payment_status"] not in UNSETTLED
            state = event.after
        assert state == model.states[number] == system.state(each)
