"""The lives of demo payments: what providers send for an order, and what it becomes.

A life is the list of its events, each as a Payment Service would send it. What the order becomes
follows from the rules in ``persistence.decision``; for what is refused, the life says so.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from persistence.decision import Reason, judge, state_after
from persistence.models import PAYMENT_COLUMNS, Order, PaymentUpdate
from persistence.payment_states import CONTESTED, SETTLED, Meaning, PaymentState
from persistence.status_words import StatusWords


class Step(NamedTuple):
    """An event of a provider."""

    at: datetime
    """When the service gets it."""
    update: PaymentUpdate
    refused: Reason | None = None


class Payment:
    """Makes the events of one order's payment."""

    def __init__(self, rng: random.Random, order: Order) -> None:
        self._token = f"{rng.getrandbits(112):028x}"
        self._order = order
        self._events = 0
        self.total = order.total_amount
        self.part = order.total_amount // 4

    def event(  # noqa: PLR0913 - what an event may have
        self,
        minutes: float,
        status: str,
        provider: str = "stripe",
        *,
        attempt: int = 1,
        session: bool = False,
        intent: bool = True,
        transaction: str | None = None,
        captured: int | None = None,
        refunded: int | None = None,
        refused: Reason | None = None,
    ) -> Step:
        """Return an event, ``minutes`` after the order was placed.

        It names the ``session``, the ``intent`` and a ``transaction`` with that prefix of its
        attempt to pay, if it is to.
        """
        self._events += 1
        token = f"{self._token[:20]}{attempt}"
        at = self._order.created_at + timedelta(minutes=minutes)
        update = PaymentUpdate(
            payment_provider=provider,
            payment_session_id=f"cs_test_{token}" if session else None,
            payment_intent_id=f"{_PREFIXES[provider]}{token}" if intent else None,
            payment_idempotency_key=f"{provider}_{self._order.id}_{self._token[:8]}_{self._events}",
            payment_status=status,
            payment_transaction_id=f"{transaction}_{self._token[:16]}{self._events}"
            if transaction
            else None,
            captured_amount=captured,
            refunded_amount=refunded,
            payment_event_time=at - timedelta(seconds=2),
            currency=self._order.currency if captured or refunded else None,
        )
        return Step(at, update, refused)


_PREFIXES: Final = {"stripe": "pi_", "allsecure": "", "mollie": "tr_", "klarna": ""}

Life: TypeAlias = Callable[[Payment], Sequence[Step]]

_HOUR: Final = 60
_DAY: Final = 24 * _HOUR


def _stripe(p: Payment) -> list[Step]:
    """Return a payment in two steps, by a checkout session."""
    return [
        p.event(1, "pending", session=True, intent=False),
        p.event(4, "paid", transaction="txn", captured=p.total),
    ]


def _allsecure(p: Payment) -> list[Step]:
    return [p.event(3, "paid", "allsecure", transaction="txn", captured=p.total)]


def _klarna(p: Payment) -> list[Step]:
    return [
        p.event(3, "AUTHORIZED", "klarna"),
        p.event(2 * _DAY, "CAPTURED", "klarna", transaction="cap", captured=p.total),
    ]


def _partly_captured(p: Payment) -> list[Step]:
    """Return a payment of which the rest is yet to come: its amounts disagree."""
    return [
        p.event(3, "AUTHORIZED", "klarna"),
        p.event(2 * _DAY, "PART_CAPTURED", "klarna", transaction="cap", captured=p.part),
    ]


def _second_attempt(p: Payment) -> list[Step]:
    return [
        p.event(1, "pending", session=True),
        p.event(3, "failed"),
        p.event(6, "pending", attempt=2, session=True),
        p.event(9, "paid", attempt=2, transaction="txn", captured=p.total),
    ]


def _late_failure(p: Payment) -> list[Step]:
    return [
        p.event(1, "pending", session=True),
        p.event(5, "processing", attempt=2, session=True),
        p.event(7, "failed", refused=Reason.ATTEMPT_NOT_CURRENT),
        p.event(9, "paid", attempt=2, transaction="txn", captured=p.total),
    ]


def _paid_twice(p: Payment) -> list[Step]:
    return [
        *_stripe(p),
        p.event(6, "paid", attempt=2, transaction="txn", refused=Reason.DUPLICATE),
    ]


def _unknown_word(p: Payment) -> list[Step]:
    return [*_stripe(p), p.event(_HOUR, "under_review", refused=Reason.STATUS_UNKNOWN)]


def _checkout_left(p: Payment) -> list[Step]:
    return [p.event(1, "pending", session=True, intent=False)]


def _debit_under_way(p: Payment) -> list[Step]:
    return [p.event(1, "pending", session=True, intent=False), p.event(3, "processing")]


def _reserved(p: Payment) -> list[Step]:
    return [p.event(3, "AUTHORIZED", "klarna")]


def _failed(p: Payment) -> list[Step]:
    return [p.event(1, "pending", session=True), p.event(4, "failed")]


def _expired(p: Payment) -> list[Step]:
    return [
        p.event(1, "pending", session=True, intent=False),
        p.event(_DAY, "expired", session=True, intent=False),
    ]


def _cancelled(p: Payment) -> list[Step]:
    return [p.event(1, "requires_action", session=True), p.event(30, "canceled")]


def _refunded(p: Payment) -> list[Step]:
    refund = p.event(3 * _DAY, "refunded", transaction="re", captured=p.total, refunded=p.total)
    return [*_stripe(p), refund]


def _partly_refunded(p: Payment) -> list[Step]:
    refund = p.event(3 * _DAY, "partially_refunded", transaction="re", refunded=p.part)
    return [*_stripe(p), refund]


def _disputed(p: Payment) -> list[Step]:
    return [*_stripe(p), p.event(4 * _DAY, "needs_response", transaction="dp")]


def _dispute_won(p: Payment) -> list[Step]:
    won = p.event(5 * _DAY, "dispute_won", transaction="dp")
    late = p.event(5 * _DAY + 1, "paid", transaction="txn")
    return [*_disputed(p), won, late]


def _charged_back(p: Payment) -> list[Step]:
    return [
        *_allsecure(p),
        p.event(4 * _DAY, "CHARGEBACK", "allsecure", transaction="cb", refunded=p.total),
    ]


def _returned(p: Payment) -> list[Step]:
    return [
        p.event(1, "open", "mollie"),
        p.event(_DAY, "paid", "mollie", captured=p.total),
        p.event(4 * _DAY, "returned", "mollie"),
    ]


def _unpaid(_: Payment) -> list[Step]:
    return []


LIVES: Final[Sequence[tuple[str, Life]]] = (
    *[("pending", _unpaid)] * 5,
    *[("pending", _checkout_left)] * 2,
    ("pending", _debit_under_way),
    ("confirmed", _reserved),
    *[("confirmed", _stripe)] * 10,
    *[("shipped", _stripe)] * 10,
    *[("delivered", _stripe)] * 18,
    *[("delivered", _allsecure)] * 15,
    *[("shipped", _klarna)] * 4,
    ("shipped", _partly_captured),
    *[("delivered", _second_attempt)] * 8,
    *[("delivered", _late_failure)] * 2,
    *[("confirmed", _paid_twice)] * 2,
    ("shipped", _unknown_word),
    *[("cancelled", _failed)] * 5,
    *[("cancelled", _expired)] * 2,
    ("cancelled", _cancelled),
    *[("cancelled", _refunded)] * 4,
    *[("delivered", _partly_refunded)] * 3,
    *[("delivered", _disputed)] * 2,
    ("delivered", _dispute_won),
    ("delivered", _charged_back),
    ("delivered", _returned),
)
"""The status of the order, and the life of its payment: each as often as in a hundred orders."""


class Taken(NamedTuple):
    """What a step has made of an order."""

    step: Step
    before: Order
    after: Order
    """As ``before``, where the step was refused."""
    meaning: Meaning | None
    """What the step's status means; None without one."""


def live(order: Order, steps: Sequence[Step], words: StatusWords) -> Iterator[Taken]:
    """Yield what each step makes of ``order``.

    It does what PostgreSQL does for the ids that lives have, of which none gets stale. Raises
    ValueError when the rules refuse a step that the life does not, or the reverse.
    """
    for step in steps:
        meaning = None
        if step.update.payment_status is not None:
            meaning = words.meaning(step.update.payment_status)
        if (reason := judge(order, step.update, meaning)) is not step.refused:
            raise ValueError(f"order {order.id} has {reason} for {step}")
        before = order
        state = None if meaning is None else state_after(order, meaning)
        if reason is None:
            given = {name: getattr(step.update, name) for name in PAYMENT_COLUMNS}
            order = order._replace(
                **{name: value for name, value in given.items() if value is not None},
                updated_at=step.at,
                captured_amount=_greatest(order.captured_amount, step.update.captured_amount),
                refunded_amount=_greatest(order.refunded_amount, step.update.refunded_amount),
            )
            if meaning is not None and state is not None:
                has_time = state is not PaymentState.PAID or meaning.reverses is not None
                time = step.update.payment_event_time if has_time else None
                order = _moved(before, order, state, step.at, time)
        yield Taken(step, before, order, meaning)


def _moved(
    before: Order, order: Order, state: PaymentState, at: datetime, time: datetime | None
) -> Order:
    """Return ``order`` in its new state, if that is another one."""
    if state == before.payment_state:
        return order._replace(payment_status_since=before.payment_status_since or at)
    now, contested_from = before.payment_state, None
    if state in CONTESTED:
        contested_from = before.contested_from if now in CONTESTED else now
        contested_from = contested_from if contested_from in SETTLED else PaymentState.PAID
    return order._replace(
        payment_state=state,
        payment_status_since=at,
        payment_event_time=time,
        contested_from=contested_from,
    )


def _greatest(first: int | None, second: int | None) -> int | None:
    given = [each for each in (first, second) if each is not None]
    return max(given, default=None)
