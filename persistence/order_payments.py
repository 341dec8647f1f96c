"""The attempts to pay an order, made of its events: those of the history, and those refused."""

import heapq
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import Final

from persistence.attempt_walk import AttemptWalk
from persistence.decision import Attempt, Reason, is_late, refusal
from persistence.models import OrderPayment, PaymentEvent, RefusedEvent
from persistence.payment_states import PaymentState
from persistence.payment_steps import IDS, Step, step_before, step_refused, step_taken
from persistence.status_words import StatusWords

MAX_EVENTS: Final = 2_000
"""How many events of an order, and as many refused ones, are worth reading: the newest."""

_OF_OTHERS: Final = (Reason.ATTEMPT_NOT_CURRENT.value, Reason.DUPLICATE.value)


def order_payments(
    events: Sequence[PaymentEvent], refused: Sequence[RefusedEvent], words: StatusWords
) -> list[OrderPayment]:
    """Return the attempts to pay an order, by their first events.

    ``events`` are those of the order's history, ``refused`` those that it has refused, each from
    the oldest to the newest; the oldest may be missing. A refused event that was written all the
    same is in the history, and counts there.
    """
    written = [event for event in refused if event.written and event.reason in _OF_OTHERS]
    walk = AttemptWalk(words, {event.payment_intent_id for event in written})
    if events and (before := step_before(events[0])):
        walk.follow(before)
    not_written = (step_refused(event) for event in refused if not event.written)
    for step in heapq.merge(map(step_taken, events), not_written, key=attrgetter("first_at")):
        walk.follow(step)
    payments = [
        _payment(steps, words, is_current=is_current)
        for steps, is_current in walk.attempts()
        if any(step.record is not None for step in steps)
    ]
    return sorted(payments, key=attrgetter("first_event_at"))


def _payment(steps: Sequence[Step], words: StatusWords, *, is_current: bool) -> OrderPayment:
    """Return what the events of one attempt say together."""
    events = [step for step in steps if step.record is not None]
    taken = sum(isinstance(step.record, PaymentEvent) for step in events)
    session_ids, intent_ids, transaction_ids = (
        list(dict.fromkeys(step.ids[name] for step in steps if name in step.ids)) for name in IDS
    )
    last = _last_with_status(events, words)
    return OrderPayment(
        payment_provider=next((step.provider for step in steps if step.provider is not None), None),
        payment_session_ids=session_ids,
        payment_intent_ids=intent_ids,
        payment_transaction_ids=transaction_ids,
        payment_status=None if last is None else last.status,
        payment_state=None if last is None else last.state,
        first_event_at=min(step.first_at for step in events),
        last_event_at=max(step.last_at for step in events),
        captured_amount=_greatest([step.captured for step in events]),
        refunded_amount=_greatest([step.refunded for step in events]),
        is_current=is_current,
        taken_events=taken,
        refused_events=len(events) - taken,
    )


def _greatest(amounts: Sequence[int | None]) -> int | None:
    return max((amount for amount in amounts if amount is not None), default=None)


def _last_with_status(steps: Sequence[Step], words: StatusWords) -> Step | None:
    """Return the step whose status is that of the attempt.

    What is refused as an event of another attempt than the order's tells how that one stands: that
    it is paid, say. What is refused because it is late, or goes back, tells nothing new. So a
    refused event counts where it may follow on what its own attempt has had.
    """
    last, since = None, None
    for step in steps:
        if step.status is None:
            continue
        if isinstance(step.record, RefusedEvent) and not _may_follow(step, last, since, words):
            continue
        last, since = step, None if step.state == PaymentState.PAID else step.time
    return last


def _may_follow(step: Step, last: Step | None, since: datetime | None, words: StatusWords) -> bool:
    if last is None or last.state is None or step.status is None:
        return True
    now, meaning = PaymentState(last.state), words.meaning(step.status)
    late = is_late(step.time, since)
    return refusal(now, meaning, Attempt.OWN, is_late=late) is None
