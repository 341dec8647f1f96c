"""Whether an update of a payment is taken, and what it makes of the payment's state.

Providers deliver events late, twice, out of order, and for several attempts to pay one order. In
doubt the order keeps what it has. ``refusal`` is the rule. It leaves out one look-up: whether
an id is new to the order (``may_follow_up``).

PostgreSQL evaluates the rule on the locked row, in the WHERE of ``update_statement.statement``. It
gets the rule as a table, which ``refusals`` makes of the function: so the two cannot differ.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import Enum, IntEnum
from functools import cache
from itertools import product
from types import MappingProxyType
from typing import Final, Protocol

from persistence.models import Order, PaymentUpdate
from persistence.payment_states import (
    CONTESTED,
    ENDED,
    OPEN,
    SETTLED,
    Meaning,
    PaymentState,
    Reversal,
    normalized,
)

UNKNOWN, PENDING, REQUIRES_ACTION, PROCESSING, AUTHORIZED = list(PaymentState)[:5]
PAID, PARTIALLY_REFUNDED, REFUNDED = list(PaymentState)[8:11]
DISPUTED, CHARGED_BACK, RETURNED = list(PaymentState)[11:]


class Reason(Enum):
    """Why an event was refused, as the ErrorInfo of the answer and the record of it have it."""

    KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    ATTEMPT_NOT_CURRENT = "PAYMENT_ATTEMPT_NOT_CURRENT"
    DUPLICATE = "PAYMENT_DUPLICATE"
    LATE = "PAYMENT_EVENT_LATE"
    CURRENCY_MISMATCH = "PAYMENT_CURRENCY_MISMATCH"
    STATUS_REFUSED = "PAYMENT_STATUS_REFUSED"
    STATUS_UNKNOWN = "PAYMENT_STATUS_UNKNOWN"


class Attempt(IntEnum):
    """Which attempt to pay the order an update is about."""

    OWN = 0
    """The order's current one, or nothing tells that it is another."""
    OTHER = 1
    UNKNOWN = 2
    """An id differs from one that an earlier attempt has left behind. It may start or pay the
    order, and not end it."""


class HasAttempt(Protocol):
    """What tells which attempt an order is at: its fields of these names."""

    @property
    def payment_provider(self) -> str | None: ...  # noqa: D102

    @property
    def payment_session_id(self) -> str | None: ...  # noqa: D102

    @property
    def payment_intent_id(self) -> str | None: ...  # noqa: D102

    @property
    def payment_session_stale(self) -> bool: ...  # noqa: D102

    @property
    def payment_intent_stale(self) -> bool: ...  # noqa: D102


ONWARD: Final[Mapping[PaymentState, Collection[PaymentState]]] = MappingProxyType(
    {
        PAID: (PARTIALLY_REFUNDED, REFUNDED, DISPUTED, CHARGED_BACK, RETURNED),
        PARTIALLY_REFUNDED: (REFUNDED, DISPUTED, CHARGED_BACK, RETURNED),
        REFUNDED: (DISPUTED, CHARGED_BACK, RETURNED),
        DISPUTED: (PARTIALLY_REFUNDED, REFUNDED, CHARGED_BACK),
        CHARGED_BACK: (),
        RETURNED: (),
    }
)
"""What a settled state may become, besides by a reversal, and from RETURNED by another attempt."""

# What an open state may not become.
_NEVER_BACK: Final[Mapping[PaymentState, Collection[PaymentState]]] = {
    AUTHORIZED: (UNKNOWN, PENDING, REQUIRES_ACTION),
    PROCESSING: (UNKNOWN,),
}

# What another attempt that is no further than the order's does not replace; None is no status.
_WEAKER: Final[Mapping[PaymentState, Collection[PaymentState | None]]] = {
    AUTHORIZED: (None, UNKNOWN, PENDING, REQUIRES_ACTION, PROCESSING),
    PROCESSING: (None, UNKNOWN, PENDING, REQUIRES_ACTION),
}

_AFTER_CURRENCY: Final = (None, Reason.STATUS_REFUSED, Reason.STATUS_UNKNOWN)
"""The reasons that a wrong currency comes before."""

# What a refund that fails may lead back from.
_REFUNDED_FROM: Final = (PAID, PARTIALLY_REFUNDED, REFUNDED)


def is_other_provider(given: str | None, current: str | None) -> bool:
    """Return whether the two are known, and differ in more than their spelling."""
    return None not in (given, current) and normalized(given or "") != normalized(current or "")


def attempt_of(order: HasAttempt, update: PaymentUpdate) -> Attempt:
    """Return which attempt ``update`` is about.

    Another provider is another attempt. Else the intent decides, where both have one; else the
    session. A stale id is one that an earlier attempt has left in the order, because the attempt
    that replaced it had none. An id that equals it is that earlier attempt's.
    """
    if is_other_provider(update.payment_provider, order.payment_provider):
        return Attempt.OTHER
    attempt = Attempt.OWN
    for given, current, is_stale in (
        (update.payment_intent_id, order.payment_intent_id, order.payment_intent_stale),
        (update.payment_session_id, order.payment_session_id, order.payment_session_stale),
    ):
        if given is None or current is None:
            continue
        if is_stale and given != current:
            attempt = Attempt.UNKNOWN
            continue
        return Attempt.OWN if given == current and not is_stale else Attempt.OTHER
    return attempt


def target(
    now: PaymentState, meaning: Meaning, contested_from: PaymentState | None
) -> PaymentState:
    """Return the state that a word with this ``meaning`` leads to from ``now``.

    ``contested_from`` is the state that the order had before its dispute or chargeback.
    """
    fixed = _fixed_target(now, meaning)
    return fixed or contested_from or PAID


def state_after(order: Order, meaning: Meaning) -> PaymentState:
    """Return the state to which a word with this ``meaning`` leads ``order``."""
    before = None if order.contested_from is None else PaymentState(order.contested_from)
    return target(PaymentState(order.payment_state), meaning, before)


def fixed_state(meaning: Meaning) -> PaymentState | None:
    """Return the state that ``meaning`` leads to from each state, without a look at the one before.

    None where it depends on the order, or leaves ``contested_from`` in it.
    """
    is_fixed = meaning.reverses is None and meaning.state not in (*CONTESTED, RETURNED)
    return meaning.state if is_fixed else None


def _fixed_target(now: PaymentState, meaning: Meaning) -> PaymentState | None:
    """Return the state that does not depend on what came before ``now``; else None."""
    if meaning.reverses is Reversal.CONTEST and now in SETTLED:
        # A reversal that comes before what it reverses changes nothing.
        return None if now in CONTESTED else now
    if meaning.reverses is Reversal.REFUND and now in SETTLED:
        return meaning.state  # PAID, or where its own total says so, PARTIALLY_REFUNDED
    if meaning.reverses is not None:
        return PAID
    if meaning.state is RETURNED and now not in SETTLED:
        return PaymentState.FAILED  # there is nothing to return yet
    return meaning.state


def judge(
    order: Order,
    update: PaymentUpdate,
    meaning: Meaning | None,
    *,
    attempt: Attempt | None = None,
    guarded: bool = True,
) -> Reason | None:
    """Return why ``order`` refuses ``update``, or None if it takes it.

    ``meaning`` is that of the update's status, None without one. ``attempt`` is given where it is
    known better than by ``attempt_of``. Unless it is ``guarded``, only the currency counts.
    """
    reason = None
    if guarded and update.override_reason is None:
        late = is_late(update.payment_event_time, order.payment_event_time)
        attempt = attempt_of(order, update) if attempt is None else attempt
        reason = refusal(PaymentState(order.payment_state), meaning, attempt, is_late=late)
    if reason in _AFTER_CURRENCY and update.currency not in (None, order.currency):
        return Reason.CURRENCY_MISMATCH
    return reason


def is_late(given: datetime | None, current: datetime | None) -> bool:
    """Return whether both times are known, and ``given`` lies in an earlier second.

    The clocks of a provider may have whole seconds only.
    """
    if given is None or current is None:
        return False
    return given.replace(microsecond=0) < current.replace(microsecond=0)


def refusal(
    now: PaymentState, meaning: Meaning | None, attempt: Attempt, *, is_late: bool
) -> Reason | None:
    """Return why an update is refused, whatever its currency; None if it is taken.

    ``meaning`` is None for an update without a status. ``is_late`` says whether the update has an
    earlier time than the order.
    """
    new = None if meaning is None else target(now, meaning, None)
    reversal = None if meaning is None else meaning.reverses
    return (
        _refusal_of_attempt(now, new, reversal, attempt)
        or (_refusal_of_time(now, new, attempt) if is_late else None)
        or _refusal_of_move(now, new, reversal, attempt)
    )


def _refusal_of_attempt(
    now: PaymentState,
    new: PaymentState | None,
    reversal: Reversal | None,
    attempt: Attempt,
) -> Reason | None:
    if attempt is not Attempt.OWN and now not in ENDED and new in ENDED:
        return Reason.ATTEMPT_NOT_CURRENT
    if attempt is not Attempt.OTHER:
        return None
    if now not in SETTLED:
        if reversal is not None or new in _WEAKER.get(now, ()):
            return Reason.ATTEMPT_NOT_CURRENT
        return None
    if reversal is None and new in (PAID, AUTHORIZED):
        return None if (now, new) == (RETURNED, PAID) else Reason.DUPLICATE
    return Reason.ATTEMPT_NOT_CURRENT


def _refusal_of_time(
    now: PaymentState, new: PaymentState | None, attempt: Attempt
) -> Reason | None:
    """Return LATE for an earlier event, unless it tells of money that the order does not have."""
    is_other = attempt is Attempt.OTHER
    if new is None or (new == now and not (is_other and now not in SETTLED)):
        return None
    if new in SETTLED:
        brings = (
            now in OPEN
            or now in (UNKNOWN, PaymentState.CANCELLED, PaymentState.EXPIRED)
            or (now in ENDED and is_other)
        )
    elif now in ENDED:
        brings = new in (AUTHORIZED, PROCESSING) and is_other
    else:
        brings = new is AUTHORIZED and now in (PENDING, REQUIRES_ACTION, UNKNOWN)
    return None if brings else Reason.LATE


def _refusal_of_move(
    now: PaymentState, new: PaymentState | None, reversal: Reversal | None, attempt: Attempt
) -> Reason | None:
    if new is None or _may_become(now, new, reversal, attempt):
        return None
    return Reason.STATUS_UNKNOWN if new is UNKNOWN else Reason.STATUS_REFUSED


def _may_become(
    now: PaymentState, new: PaymentState, reversal: Reversal | None, attempt: Attempt
) -> bool:
    if new is now:
        return True
    if now not in SETTLED:
        return new not in _NEVER_BACK.get(now, ())
    if reversal is not None:
        return now in (CONTESTED if reversal is Reversal.CONTEST else _REFUNDED_FROM)
    if now is RETURNED:
        return new is PAID and attempt is Attempt.OTHER
    return new in ONWARD[now]


def may_follow_up(now: PaymentState, meaning: Meaning | None, reason: Reason | None) -> bool:
    """Return whether the event may be one of the order's payment, by an intent of its own.

    Some providers give a refund, dispute or chargeback an id of its own. ``reason`` is why the
    event of another attempt is refused otherwise.
    """
    if reason is not Reason.ATTEMPT_NOT_CURRENT or now not in SETTLED or meaning is None:
        return False
    return meaning.reverses is not None or meaning.state in SETTLED - {PAID}


def allowed_after(now: PaymentState) -> list[PaymentState]:
    """Return the other states that the order's own attempt may move to, by no reversal."""
    return [
        new
        for new in PaymentState
        if new is not now and refusal(now, Meaning(new), Attempt.OWN, is_late=False) is None
    ]


# The two as tables for PostgreSQL: a byte for each state of the order, by its number.

LATE: Final = len(Attempt)
"""What lateness adds to the number of an attempt, for the bit in a byte of ``refusals``."""

NO_REFUSALS: Final = bytes(1 + max(PaymentState))
"""The table with which everything is taken."""


@cache
def refusals(meaning: Meaning | None) -> bytes:
    """Return the table of ``refusal``: bit ``attempt + LATE * is_late`` of the state's byte."""
    table = bytearray(NO_REFUSALS)
    for now, attempt, is_late in product(PaymentState, Attempt, (False, True)):
        if refusal(now, meaning, attempt, is_late=is_late) is not None:
            table[now] |= 1 << (attempt + LATE * is_late)
    return bytes(table)


@cache
def targets(meaning: Meaning) -> bytes:
    """Return the table of ``target``: 0 stands for the state before the contest."""
    return bytes([0, *(_fixed_target(now, meaning) or 0 for now in PaymentState)])
