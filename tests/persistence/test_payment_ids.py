"""Whatever is sent: each id finds its order, and each event belongs to one attempt."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from persistence.errors import (
    IdempotencyKeyReused,
    OrderNotFound,
    PaymentAmbiguous,
    PaymentEventRefused,
)
from persistence.find_order import REFERENCES
from persistence.history import PaymentHistory
from persistence.models import Origin, PaymentUpdate, RefusedFilter
from persistence.order_payments import MAX_EVENTS, order_payments
from persistence.orders import OrderRepository
from persistence.payment_updates import Guard
from persistence.refused_event_log import RefusedEventLog
from persistence.status_words import StatusWords
from tests.support import databases
from tests.support.orders import Orders

MISSING_ORDER_ID: Final = 10**15
NAMES: Final = ("a", "b", "c")

UPDATES: Final = st.fixed_dictionaries(
    {},
    optional={
        "payment_provider": st.sampled_from(["stripe", "Stripe", "allsecure"]),
        "payment_session_id": st.sampled_from(NAMES),
        "payment_intent_id": st.sampled_from(NAMES),
        "payment_transaction_id": st.sampled_from(NAMES),
        "payment_idempotency_key": st.sampled_from(NAMES),
        "payment_status": st.sampled_from(
            ["pending", "processing", "failed", "paid", "refunded", "disputed", "piad"]
        ),
        "currency": st.sampled_from(["EUR", "EUR", "USD"]),
    },
).filter(lambda fields: fields.keys() - {"currency"})
SENT: Final = st.lists(st.tuples(st.integers(0, 2), UPDATES), max_size=12)
NAMED_BY_A_REFUSED_EVENT: Final = [
    (0, {"payment_session_id": "a", "payment_provider": "stripe", "currency": "USD"}),
    (0, {"payment_session_id": "a"}),
    (0, {"payment_provider": "stripe", "currency": "USD"}),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with databases.clone() as url:
        yield url


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sent=SENT, guard=st.sampled_from(list(Guard)))
@example(sent=NAMED_BY_A_REFUSED_EVENT, guard=Guard.ON)
def test_nothing_that_was_sent_is_lost(
    url: str, sent: list[tuple[int, dict[str, str]]], guard: Guard
) -> None:
    """To two orders, and to one that there is not. Ids are prefixed with those of the orders."""
    order_ids = [Orders(url).add(), Orders(url).add(), MISSING_ORDER_ID]
    prefix = f"{order_ids[0]} "
    updates = [
        (order_ids[n], {name: _prefixed(prefix, name, value) for name, value in fields.items()})
        for n, fields in sent
    ]
    asyncio.run(_check(url, updates, order_ids[:2], guard))


def _prefixed(prefix: str, name: str, value: str) -> str:
    return prefix + value if name in REFERENCES else value


async def _check(
    url: str, updates: list[tuple[int, dict[str, str]]], order_ids: list[int], guard: Guard
) -> None:
    async with databases.pool(url) as database:
        repository = OrderRepository(database, guard=guard)
        holders: dict[tuple[str, str], set[int]] = {}
        digests = set()
        for order_id, fields in updates:
            outcome = await _sent(repository, order_id, fields)
            if outcome is None or order_id == MISSING_ORDER_ID:
                continue
            digest = (order_id, outcome, *_distinguishing(fields))
            for name in REFERENCES:
                # Equal refused events are one, with the key of the first.
                is_counted = outcome and name == REFERENCES[-1] and digest in digests
                if name in fields and not is_counted:
                    holders.setdefault((name, fields[name]), set()).add(order_id)
            digests.add(digest)
        for (name, value), expected in holders.items():
            assert await _found(repository, name, value) <= expected, (name, value)
        for order_id in order_ids:
            await _check_attempts(PaymentHistory(database), RefusedEventLog(database), order_id)


def _distinguishing(fields: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(each for each in fields.items() if each[0] != REFERENCES[-1]))


async def _sent(repository: OrderRepository, order_id: int, fields: dict[str, Any]) -> str | None:
    """Return why the update was refused, "" if it was taken, None if it left nothing."""
    try:
        await repository.update_payment_info(order_id, PaymentUpdate(**fields), Origin("r"))
    except PaymentEventRefused as refusal:
        return refusal.reason.value
    except IdempotencyKeyReused as refusal:
        return refusal.reason.value
    except OrderNotFound:
        return None
    return ""


async def _found(repository: OrderRepository, name: str, value: str) -> set[int]:
    """Return the orders that are found; there is at least one."""
    try:
        found = await repository.find_by_payment(name, value, None)
    except PaymentAmbiguous as ambiguous:
        assert len(ambiguous.order_ids) > 1
        return set(ambiguous.order_ids)
    return {found.order.id}


async def _check_attempts(
    history: PaymentHistory, refused_events: RefusedEventLog, order_id: int
) -> None:
    events = await history.list_latest_events(order_id, MAX_EVENTS)
    wanted = RefusedFilter(order_id=order_id)
    refused = (await refused_events.list_events(wanted, MAX_EVENTS))[::-1]
    payments = await history.list_payments(order_id)

    assert sum(each.taken_events for each in payments) == len(events)
    assert sum(each.refused_events for each in payments) == sum(not e.written for e in refused)
    assert sum(each.is_current for each in payments) == bool(events)
    ids = Counter(
        (each.payment_provider and each.payment_provider.lower(), name, value)
        for each in payments
        for name, values in each._asdict().items()
        if name.endswith("_ids")
        for value in values
    )
    named = {provider for provider, _, _ in ids}
    if None not in named:  # before a provider is named, an id is of none
        assert max(ids.values(), default=1) == 1
    # Of a part of the events, too, each belongs to one attempt.
    some = order_payments(events[-2:], refused[-2:], StatusWords.builtin())
    assert sum(each.taken_events for each in some) == len(events[-2:])
