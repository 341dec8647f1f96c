"""The events of an order, taken and refused, as steps of one kind."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from persistence.decision import Reason
from persistence.models import RECORDED_FIELDS, PaymentEvent, RefusedEvent
from persistence.payment_states import normalized

SESSION: Final = "payment_session_id"
INTENT: Final = "payment_intent_id"
IDS: Final = (SESSION, INTENT, "payment_transaction_id")

Key: TypeAlias = tuple[str | None, str, str]
"""An id of one provider: the provider, normalized, the id's column, and the id."""


@dataclass(frozen=True)
class Step:
    """An event: when it was taken or refused, and what it says."""

    record: PaymentEvent | RefusedEvent | None
    """None for the payment that the order had before the first event."""
    first_at: datetime
    last_at: datetime
    provider: str | None
    """As it is spelled."""
    ids: dict[str, str]
    """The ids that it names, by their columns."""
    status: str | None = None
    state: int | None = None
    time: datetime | None = None
    captured: int | None = None
    refunded: int | None = None
    keys: list[Key] = field(init=False)
    """What it has in common with other events of its attempt."""

    def __post_init__(self) -> None:
        keys = [(self._normalized(), name, value) for name, value in self.ids.items()]
        object.__setattr__(self, "keys", keys)

    @property
    def anonymous(self) -> Key:
        """What the events of the provider that name no id have in common."""
        return (self._normalized(), "", "")

    def _normalized(self) -> str | None:
        return None if self.provider is None else normalized(self.provider)


def step_before(event: PaymentEvent) -> Step | None:
    """Return the payment that the order had before ``event``; None if it had none."""
    before = {name: getattr(event, f"{name}_before") for name in IDS}
    ids = {name: value for name, value in before.items() if value is not None}
    provider = event.payment_provider_before
    if not ids and provider is None:
        return None
    return Step(None, event.created_at, event.created_at, provider, ids)


def step_taken(event: PaymentEvent) -> Step:
    """Return an event of the history, with the ids that its request named.

    Of a change by hand, or by version 0.1, those that it has changed.
    """
    ids = {}
    for name in IDS:
        before, after = getattr(event, f"{name}_before"), getattr(event, f"{name}_after")
        if after is not None and (after != before or _is_named(event, name)):
            ids[name] = after
    return Step(
        event,
        event.created_at,
        event.created_at,
        event.payment_provider_after,
        ids,
        event.payment_status_after,
        event.payment_state_after,
        event.payment_event_time,
        event.captured_amount,
        event.refunded_amount,
    )


def _is_named(event: PaymentEvent, field: str) -> bool:
    return bool((event.named_fields or 0) >> RECORDED_FIELDS.index(field) & 1)


def step_refused(event: RefusedEvent) -> Step:
    """Return a refused event: without amounts, if they are of another currency."""
    requested = {name: getattr(event, name) for name in IDS}
    has_amounts = event.reason != Reason.CURRENCY_MISMATCH.value
    return Step(
        event,
        event.first_refused_at,
        event.last_refused_at,
        event.payment_provider or event.order_payment_provider,
        {name: value for name, value in requested.items() if value is not None},
        event.payment_status,
        event.requested_state,
        event.payment_event_time,
        event.captured_amount if has_amounts else None,
        event.refunded_amount if has_amounts else None,
    )
