"""How ``listings tail`` shows a change of a payment: in one line for people, or as JSON."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from persistence.models import PAYMENT_COLUMNS, PaymentEvent
from persistence.payment_states import PaymentState
from server.observability.console import quoted
from server.observability.masking import MASKED_FIELDS, mask_identifier

# Enough for most; longer ones move the rest of their line.
_ORDER_WIDTH: Final = 10
_STATE_WIDTH: Final = max(len(state.name) for state in PaymentState)


def json_line(event: PaymentEvent) -> str:
    """Return the JSON of the message ``OrderPaymentEvent``, with all values as they are."""
    from server.rpc.conversion import event_message

    return event_message(event).to_json()


def line(event: PaymentEvent, *, full: bool) -> str:
    """Return the local time, the order, the states before and after, and what has changed.

    Session, intent, key and transaction are masked as in the log, unless ``full``.
    """
    states = (event.payment_state_before, event.payment_state_after)
    before, after = ("-" if each is None else PaymentState(each).name for each in states)
    changes = " ".join(f"{name}={value}" for name, value in _changes(event, full=full))
    return (
        f"{_local(event.created_at)}  order {event.order_id:<{_ORDER_WIDTH}}"
        f"  {before:>{_STATE_WIDTH}} → {after:<{_STATE_WIDTH}}  {changes or '(no change)'}"
    )


def _changes(event: PaymentEvent, *, full: bool) -> Iterator[tuple[str, str]]:
    for column in PAYMENT_COLUMNS:
        after = getattr(event, f"{column}_after")
        if after != getattr(event, f"{column}_before"):
            is_masked = column in MASKED_FIELDS and not full and after is not None
            yield _short(column), _shown(mask_identifier(after) if is_masked else after)
    for name in ("captured_amount", "refunded_amount", "currency", "override_reason", "caller"):
        if (value := getattr(event, name)) is not None:
            yield _short(name), _shown(value)
    if event.request_id is None:  # neither the service nor demo orders
        yield "by_hand", _shown(event.database_role)


def _short(name: str) -> str:
    return name.removeprefix("payment_").removesuffix("_id").removesuffix("_amount")


def _shown(value: str | int | None) -> str:
    return "-" if value is None else quoted(value)


def _local(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"
