"""The history of payments, in the model and in the table, in one form."""

from typing import Final

from persistence.models import PAYMENT_COLUMNS, PaymentEvent
from persistence.payment_states import PaymentState
from tests.support import by_model
from tests.support.payment_model import Order, Request
from tests.support.payment_shop import Shop, Taken
from tests.support.payment_words import State

_AMOUNTS: Final = ("captured_amount", "refunded_amount")


def in_model(shop: Shop) -> dict[str, list[tuple[object, ...]]]:
    """Return what the history has of each order."""
    return {
        name: [
            (_seen(each.before), _seen(each.after), *_kept(each.request))
            for each in shop.history
            if each.order == name and _is_in_history(each)
        ]
        for name in shop.orders
    }


def _is_in_history(taken: Taken) -> bool:
    """Tell whether it changes the payment, or has what the history keeps in any case."""
    kept = ("payment_idempotency_key", "override_reason", *_AMOUNTS)
    return taken.before != taken.after or any(
        getattr(taken.request, name) is not None for name in kept
    )


def _seen(order: Order) -> tuple[object, ...]:
    return (order.payment_state, *(getattr(order, name) for name in PAYMENT_COLUMNS))


def _kept(request: Request) -> tuple[object, ...]:
    given = request.as_compared()
    amounts = (getattr(given, name) for name in _AMOUNTS)
    return (
        *(given.payment_idempotency_key, given.payment_event_time, given.currency),
        *(request.override_reason, *amounts),
    )


def entry(event: PaymentEvent) -> tuple[object, ...]:
    """Return what ``in_model`` has of an event of the history."""
    before, after = (
        tuple(getattr(event, f"{name}_{when}") for name in PAYMENT_COLUMNS)
        for when in ("before", "after")
    )
    return (
        (State[PaymentState(event.payment_state_before or 0).name], *before),
        (State[PaymentState(event.payment_state_after).name], *after),
        event.idempotency_key or event.further_idempotency_key,
        by_model.microseconds(event.payment_event_time),
        *(event.currency, event.override_reason, event.captured_amount, event.refunded_amount),
    )
