"""The rules of payments in SQL, in the service's function and in the model are the same.

Statements are those that the service sends. They run on a temporary copy of ``orders`` which has a
row for each state, contested state before and attempt, and they look at all of its rows at once.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Final, NamedTuple, cast

import asyncpg
import pytest

from persistence import decision, errors
from persistence.batcher import BatchedStatement, Batcher
from persistence.database import Database
from persistence.decision import Reason
from persistence.models import Order, Origin, PaymentUpdate
from persistence.orders import OrderRepository
from persistence.payment_states import CONTESTED, Meaning, PaymentState
from persistence.payment_updates import Guard, PaymentUpdates
from tests.support import by_model, databases
from tests.support.orders import Orders
from tests.support.payment_model import Attempt, Request, Rules

TABLE: Final = by_model.TABLE
RULES: Final = by_model.rules()

# A word for each state and each reversal; and the state of a refund that fails in part.
WORDS: Final = {
    state: next(word for word, each in TABLE.meanings.items() if each == Meaning(state))
    for state in PaymentState
    if state is not PaymentState.UNKNOWN
} | {PaymentState.UNKNOWN: "piad", PaymentState.PENDING: "pending"}
MEANINGS: Final = [*WORDS.values(), "dispute_won", "refund_failed", "refund_failed in part", None]

TIME: Final = datetime(2025, 6, 1, 12, 0, 0, 500_000, tzinfo=UTC)
EARLIER: Final = TIME - timedelta(seconds=10)
IN_THE_SAME_SECOND: Final = TIME - timedelta(microseconds=400_000)
SINCE: Final = datetime(2025, 6, 1, tzinfo=UTC)

PROVIDERS: Final = (None, "stripe")
IDS: Final = ((None, False), ("1", False), ("1", True))
"""An id in the order, and whether it is stale."""
GIVEN: Final = (None, "1", "2")
"""An id in the request: none, the same, another."""


def rows() -> Iterator[Order]:
    """Yield an order for each combination of state, attempt, and state before a contest."""
    befores = (None, PaymentState.REFUNDED, PaymentState.RETURNED)
    states: list[tuple[PaymentState | None, PaymentState | None]]
    states = [(state, None) for state in (None, *PaymentState)]
    states += [(state, before) for state in sorted(CONTESTED) for before in befores[1:]]
    attempts = product(PROVIDERS, IDS, IDS)
    for number, ((state, before), (provider, session, intent)) in enumerate(
        product(states, attempts), start=1
    ):
        yield Order(
            *(number, f"T-{number}", 7, 3, "new", WORDS[state or PaymentState.PENDING], "EUR"),
            *(10_000, 0, 0, 0, 10_000, SINCE, SINCE),
            *(provider, session[0], intent[0], None, None),
            payment_state=cast("int", state),
            payment_event_time=TIME,
            payment_status_since=SINCE,
            captured_amount=500,
            refunded_amount=None,
            payment_version=None,
            contested_from=before,
            payment_session_stale=session[1],
            payment_intent_stale=intent[1],
        )


ROWS: Final = list(rows())
BY_ID: Final = {
    row.id: row._replace(payment_state=row.payment_state or PaymentState.PENDING) for row in ROWS
}
"""As the service reads them."""
MODELLED: Final = {row.id: by_model.order(row._asdict()) for row in ROWS}


def with_word(word: str | None) -> Request:
    """Return a request with that word, or with an amount alone."""
    if word == "refund_failed in part":
        return Request("refund_failed", refunded_amount=1)
    return Request(word, captured_amount=None if word else 700)


def requests(word: str | None) -> Iterator[Request]:
    """Yield requests with that word for each attempt, early or without a time."""
    early = by_model.microseconds(EARLIER)
    attempts = [*product((None, "stripe", "adyen"), GIVEN, GIVEN), (" STR-ipe", None, None)]
    for (provider, session, intent), time in product(attempts, (None, early)):
        yield with_word(word)._replace(
            payment_provider=provider,
            payment_session_id=session,
            payment_intent_id=intent,
            payment_event_time=time,
        )


def rich_requests(word: str | None) -> Iterator[Request]:
    """Yield requests with that word and a currency, also such as override the rules."""
    times = [by_model.microseconds(each) for each in (EARLIER, IN_THE_SAME_SECOND)]
    for intent, currency, reason, at in product(
        ("1", "2"), ("EUR", "USD"), ("so it is", None), times
    ):
        yield with_word(word)._replace(
            payment_intent_id=intent,
            payment_event_time=at,
            captured_amount=400,
            currency=currency,
            override_reason=reason,
        )


class Sent(Exception):
    """Ends an update once its statement is known."""

    def __init__(self, sql: str, arguments: tuple[object, ...]) -> None:
        super().__init__(sql)
        self.sql = sql
        self.arguments = arguments


class Sender:
    """A batcher that runs nothing."""

    async def fetchrow(self, statement: BatchedStatement, row_id: int, *args: object) -> None:
        raise Sent(statement.single, (row_id, *args))


async def sent(update: PaymentUpdate, guard: Guard) -> Sent:
    """Return the first statement of an update."""
    updates = PaymentUpdates(
        cast("Database", None),
        cast("Any", None),
        words=TABLE,
        guard=guard,
        batcher=cast("Batcher", Sender()),
    )
    with pytest.raises(Sent) as caught:
        await updates.write(0, update, Origin("r"), None)
    return caught.value


class Copy(NamedTuple):
    """A connection with a temporary table ``orders``."""

    connection: "asyncpg.Connection[Any]"

    async def updated(self, statement: Sent) -> dict[int, Order]:
        """Return the rows that the statement writes, and roll it back."""
        only, any_ = '"id"=$1', '"id">=$1'
        assert statement.sql.count(only) == 1
        transaction = self.connection.transaction()
        await transaction.start()
        found = await self.connection.fetch(statement.sql.replace(only, any_), *statement.arguments)
        await transaction.rollback()
        return {row["id"]: Order._make(row.values()) for row in found}


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def copy(runner: asyncio.Runner) -> Iterator[Copy]:
    with databases.clone() as url:
        connection = runner.run(asyncpg.connect(url))
        runner.run(_fill(connection))
        yield Copy(connection)
        runner.run(connection.close())


async def _fill(connection: "asyncpg.Connection[Any]") -> None:
    await connection.execute("CREATE TEMP TABLE orders (LIKE orders)")
    names = list(Order._fields)
    names.remove("payment_version")  # which has no binary form
    records = [[getattr(row, name) for name in names] for row in ROWS]
    await connection.copy_records_to_table("orders", records=records, columns=names)


@pytest.mark.parametrize("word", MEANINGS)
def test_sql_takes_what_the_function_takes_and_writes_what_the_model_says(
    copy: Copy, runner: asyncio.Runner, word: str | None
) -> None:
    for request in (*requests(word), *rich_requests(word)):
        runner.run(check(copy, request, Guard.ON))
    for request in rich_requests(word):
        runner.run(check(copy, request, Guard.OFF))


async def check(copy: Copy, request: Request, guard: Guard) -> None:
    """Check what the statement of ``request`` writes, over all rows."""
    update, meaning = by_model.update(request), _meaning(request)
    written = await copy.updated(await sent(update, guard))
    taken = {
        number
        for number, row in BY_ID.items()
        if decision.judge(row, update, meaning, guarded=guard is Guard.ON) is None
    }
    assert written.keys() == taken, request
    for number, row in written.items():
        before = MODELLED[number]
        after = RULES.apply(before, request)
        assert by_model.order(row._asdict()) == after._replace(changes=0), (before, request)
        is_moved = before.payment_state != after.payment_state
        assert (row.payment_status_since != SINCE) == is_moved, (before, request)


def _meaning(request: Request) -> Meaning | None:
    if request.payment_status is None:
        return None
    meaning = TABLE.meaning(request.payment_status)
    if request.payment_status == "refund_failed" and request.refunded_amount:
        return meaning._replace(state=PaymentState.PARTIALLY_REFUNDED)
    return meaning


def test_the_function_tells_attempts_apart_as_the_model_does() -> None:
    told = set()
    providers = (*PROVIDERS, "adyen", "St-ripe ")
    for provider, session, intent in product(providers, GIVEN, GIVEN):
        request = Request("paid", provider, session, intent)
        update = by_model.update(request)
        for number, row in BY_ID.items():
            attempt = RULES.attempt(MODELLED[number], request)
            assert decision.attempt_of(row, update).name == attempt.name, (row, request)
            told.add(attempt)
    assert told == set(Attempt)


ATTEMPTS: Final = {
    # The order's provider, session, intent and whether it is stale; those of the request.
    Attempt.OWN: (("stripe", "1", "1", False), ("stripe", "1", "1")),
    Attempt.OTHER: (("stripe", "1", "1", False), ("stripe", "2", "2")),
    Attempt.UNKNOWN: (("stripe", None, "1", True), ("stripe", "2", "2")),
}
TIMES: Final = (None, EARLIER, IN_THE_SAME_SECOND, TIME + timedelta(seconds=1))


@pytest.mark.parametrize("word", MEANINGS)
@pytest.mark.parametrize("attempt", Attempt)
def test_the_function_gives_the_reasons_of_the_model(word: str | None, attempt: Attempt) -> None:
    """Providers have no intents of their own here: for them there is a look-up besides."""
    rules = Rules(RULES.words, ())
    held, (provider, session, intent) = ATTEMPTS[attempt]
    reasons: set[str | None] = set()
    for known, time, current, currency, reason, guarded in product(
        [row for row in BY_ID.values() if _attempt(row) == held],
        TIMES,
        (None, TIME),
        (None, "eur", "USD"),
        (None, "so it is"),
        (True, False),
    ):
        row = known._replace(payment_event_time=current)
        request = with_word(word)._replace(
            payment_provider=provider,
            payment_session_id=session,
            payment_intent_id=intent,
            payment_event_time=by_model.microseconds(time),
            currency=currency,
            override_reason=reason,
        )
        order = by_model.order(row._asdict())
        assert rules.attempt(order, request) is attempt
        expected = rules.judge(order, request, guarded=guarded)
        given = decision.judge(row, by_model.update(request), _meaning(request), guarded=guarded)
        assert (given and given.value) == expected, (order, request)
        reasons.add(expected)
    assert reasons >= {None, "PAYMENT_CURRENCY_MISMATCH"}


def _attempt(row: Order) -> tuple[object, ...]:
    ids = (row.payment_provider, row.payment_session_id, row.payment_intent_id)
    return (*ids, row.payment_intent_stale) if not row.payment_session_stale else ()


@pytest.mark.anyio
async def test_a_state_that_is_null_is_that_of_the_word(database_url: str) -> None:
    """Over each word before and each word after: as by a worker of the version before."""
    orders = Orders(database_url)
    async with databases.pool(database_url, max_connections=4) as database:
        repository = OrderRepository(database)
        pairs = list(product((*WORDS.values(), "dispute_won", "refund_failed"), MEANINGS))
        ids = [orders.add(payment_status=before, payment_provider="p") for before, _ in pairs]
        assert all(orders.row(order_id)["payment_state"] is None for order_id in ids)

        async def answer(order_id: int, request: Request) -> Reason | None:
            try:
                update = by_model.update(request)
                await repository.update_payment_info(order_id, update, Origin("r"))
            except errors.PaymentEventRefused as refusal:
                return refusal.reason
            return None

        requests = [with_word(after) for _, after in pairs]
        rows = [by_model.order(orders.row(order_id)) for order_id in ids]
        answers = await asyncio.gather(*map(answer, ids, requests))
    for order_id, before, request, given in zip(ids, rows, requests, answers, strict=True):
        expected = RULES.judge(before, request)
        assert (given and given.value) == expected, (before, request)
        after = before if expected else RULES.apply(before, request)
        assert by_model.order(orders.row(order_id)) == after._replace(changes=0)
