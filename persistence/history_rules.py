"""What a history and the row of its order must fulfil: the rules of ``listings verify``.

A history begins with an order that has no payment, each event goes on where the one before it
ended, and the row is what the last one left. Allowed besides, because it happens:

- An event without a status before it: the order was inserted with a payment, or was deleted and
  inserted again, or had the payment before the history began. A request of the service has one.
- A null state after an event, of version 0.1 or after a change of the word by hand. It is derived
  from the word later, which is no event: so any state may follow.
- Amounts, times and versions have no values before and after. A row may have an amount that an
  event asked for, unless a later one asked for more, or an override or a change by hand set another
  one. It may have a time that an event asked for, and a version that is an event's transaction.
- An order may move to another storefront. Its events keep the one that they happened in.

The history does not keep ``payment_status_since``, ``contested_from``, ``payment_session_stale``
and ``payment_intent_stale``, so there is no rule for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from persistence.models import AMOUNT_COLUMNS, PAYMENT_COLUMNS
from persistence.payment_states import UNPAID, PaymentState

Row: TypeAlias = Mapping[str, Any]

_KEY: Final = "payment_idempotency_key"
_STATE: Final = "payment_state"

# No transaction that writes orders has this id. An order has it for its version where it had the id
# of the transaction already, from the cluster that it was restored from.
_OTHER_VERSION: Final = 1


class Disagreement(NamedTuple):
    """What disagrees. It reads as a sentence about the order, its event or its refused event."""

    order_id: int
    text: str
    event_id: int | None = None
    refused_id: int | None = None

    def __str__(self) -> str:
        """Return it with the ids, in one line."""
        event = f", event {self.event_id}" if self.event_id is not None else ""
        refused = f", refused event {self.refused_id}" if self.refused_id is not None else ""
        return f"order {self.order_id}{event}{refused}: {self.text}"


class Transactions(NamedTuple):
    """Which ids of transactions events may have."""

    end: int
    """The first id that no transaction had at the time of reading."""
    earlier_events: int
    """Events with ids up to this one are of an earlier epoch, and may have any."""


def history_faults(
    order_id: int, order: Row | None, events: Sequence[Row], transactions: Transactions
) -> Iterator[Disagreement]:
    """Yield what disagrees in the row of an order, None if it was deleted, and its events, by id.

    Both have the columns of their tables.
    """
    first_uses: set[str] = set()
    previous: Row | None = None
    for event in events:
        found = [
            *_discontinuities(previous, event),
            *_faults_of_key(event, first_uses),
            *_faults_of_transaction(event, transactions),
        ]
        yield from (Disagreement(order_id, text, event["id"]) for text in found)
        first_uses |= {event["idempotency_key"]} - {None}
        previous = event
    if order is not None:
        found = [*(_faults_of_row(order, events) if events else _faults_without_history(order))]
        yield from (Disagreement(order_id, text) for text in found)


def _discontinuities(previous: Row | None, event: Row) -> Iterator[str]:
    names = (*PAYMENT_COLUMNS, _STATE)
    if event["payment_status_before"] is None:
        given = [name for name in names if event[f"{name}_before"] is not None]
        if given:
            yield f"has no status before it, but has {_list(given)}"
        if event["named_fields"] is not None:
            yield "is a request, and has no status before it"
    elif previous is None:
        if begun := _begun(event, "_before"):
            yield f"is the first, and has a payment before it: {_list(begun)}"
    else:
        differing = [
            name
            for name in names
            if event[f"{name}_before"] != previous[f"{name}_after"]
            and not (name == _STATE and previous[f"{name}_after"] is None)
        ]
        if differing:
            yield f"does not go on from event {previous['id']}: {_list(differing)}"


def _begun(row: Row, suffix: str = "") -> list[str]:
    """Return the columns that an order without a payment does not have like this."""
    begun = {name: row[f"{name}{suffix}"] is not None for name in PAYMENT_COLUMNS}
    begun["payment_status"] = row[f"payment_status{suffix}"] != UNPAID
    begun[_STATE] = row[f"{_STATE}{suffix}"] not in (None, PaymentState.PENDING)
    return [name for name, is_begun in begun.items() if is_begun]


def _faults_of_key(event: Row, first_uses: set[str]) -> Iterator[str]:
    first, further = event["idempotency_key"], event["further_idempotency_key"]
    key = event[f"{_KEY}_after"]
    used = further if first is None else first
    if first is not None and further is not None:
        yield "has the key of a first use and that of a further one"
    if used is None:
        if key is not None and key != event[f"{_KEY}_before"]:
            yield "brings an idempotency key, and does not record its use"
    elif used != key:
        yield "records the use of another idempotency key than its payment has"
    if further is not None:
        if further not in first_uses:
            yield "is a further use of an idempotency key without a first one before it"
        if event["request_digest"] is None:
            yield "is a further use of an idempotency key, and has no digest of the request"


def _faults_of_transaction(event: Row, transactions: Transactions) -> Iterator[str]:
    if event["id"] > transactions.earlier_events and event["transaction_id"] >= transactions.end:
        yield f"has a transaction id of the future, {event['transaction_id']}"


def _faults_without_history(order: Row) -> Iterator[str]:
    amounts = [name for name in AMOUNT_COLUMNS if order[name] is not None]
    if begun := [*_begun(order), *amounts]:
        yield f"has a payment and no history: {_list(begun)}"


def _faults_of_row(order: Row, events: Sequence[Row]) -> Iterator[str]:
    last = events[-1]
    differing = [name for name in PAYMENT_COLUMNS if order[name] != last[f"{name}_after"]]
    if last[f"{_STATE}_after"] not in (None, order[_STATE]):
        differing.append(_STATE)
    if differing:
        yield f"is not what event {last['id']} left: {_list(differing)}"
    unexplained = [name for name in AMOUNT_COLUMNS if not _is_explained(order[name], name, events)]
    # What is derived from a state that was null is no event.
    if all(event[f"{_STATE}_after"] is not None for event in events):
        if not _has_time(order, events):
            unexplained.append("payment_event_time")
        if not _has_version(order, events):
            unexplained.append("payment_version")
    if unexplained:
        yield f"has what no event explains: {_list(unexplained)}"


def _is_explained(amount: int | None, name: str, events: Sequence[Row]) -> bool:
    """Tell whether the events can have led to ``amount``.

    A total is the larger of the old and the given one; a reversal, an override and a change by hand
    set it.
    """
    given = [event[name] for event in events]
    if amount is None:
        removed = _last(_is_by_hand(event) and event[name] is None for event in events)
        asked = _last(each is not None for each in given)
        return asked < 0 or removed > asked
    same = _last(each == amount for each in given)
    larger = _last(each is not None and each > amount for each in given)
    is_set = _last(
        event[name] is not None and (_is_by_hand(event) or event["override_reason"] is not None)
        for event in events
    )
    return same > larger and same >= is_set and same >= 0


def _is_by_hand(event: Row) -> bool:
    """Tell whether it is neither a request of the service nor a demo event, which has a digest."""
    return event["named_fields"] is None and event["request_digest"] is None


def _has_time(order: Row, events: Sequence[Row]) -> bool:
    time = order["payment_event_time"]
    return time is None or any(event["payment_event_time"] == time for event in events)


def _has_version(order: Row, events: Sequence[Row]) -> bool:
    """Tell whether the version is an event's; none is that of demo orders and of version 0.1."""
    version = order["payment_version"]
    if version == _OTHER_VERSION:
        return True
    if version is None:
        return not any(event["named_fields"] is not None and _changes(event) for event in events)
    return any(event["transaction_id"] == version for event in events)


def _changes(event: Row) -> bool:
    names = (*PAYMENT_COLUMNS, _STATE)
    return any(event[f"{name}_before"] != event[f"{name}_after"] for name in names)


def _last(flags: Iterator[bool]) -> int:
    """Return the index of the last true one, -1 if there is none."""
    return max((index for index, flag in enumerate(flags) if flag), default=-1)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
