"""Compares the answers that callers received with the ledger and the rows in PostgreSQL."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

import psycopg
from psycopg import IsolationLevel
from psycopg.rows import dict_row

from persistence.models import PAYMENT_COLUMNS
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support.load import OK, UNKNOWN, Attempt

_Row = Mapping[str, Any]


def losses(url: str, attempts: Sequence[Attempt]) -> list[str]:
    """Return the inconsistencies, one sentence each; an empty list if there are none.

    Every acknowledged update is in the ledger exactly once, with the values that were sent; a
    refused one is not; one of unknown outcome is there at most once, even if it was sent again. The
    events of each order form a chain without a gap that ends in the row, and no event precedes that
    of an update that was acknowledged before its own was sent.

    Updates are identified by their ``payment_transaction_id``, which no two of them may share.
    """
    told: dict[str, list[Attempt]] = defaultdict(list)
    for each in attempts:
        if isinstance(each.request, UpdateOrderPaymentRequest):
            told[each.request.payment_transaction_id].append(each)
    updates = {name: _Update.of(group) for name, group in told.items()}
    with psycopg.connect(url, row_factory=dict_row) as connection:
        # One snapshot: an update of unknown outcome may still be committed in between.
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        events = connection.execute("SELECT * FROM order_payment_events ORDER BY id").fetchall()
        rows = connection.execute("SELECT * FROM orders").fetchall()
    return [
        *_wrongly_entered(updates, events),
        *_unexplained(events, rows),
        *_out_of_order(updates, events),
    ]


@dataclass(frozen=True)
class _Update:
    """The combined outcome of all attempts at one update."""

    request: UpdateOrderPaymentRequest
    began: float
    acknowledged_at: float  # inf, if never
    may_be_done: bool

    @classmethod
    def of(cls, attempts: Sequence[Attempt]) -> "_Update":
        request = attempts[0].request
        assert isinstance(request, UpdateOrderPaymentRequest)
        return cls(
            request,
            began=min(each.began for each in attempts),
            acknowledged_at=min((each.ended for each in attempts if each.code == OK), default=inf),
            may_be_done=any(each.code == OK or each.code in UNKNOWN for each in attempts),
        )


def _wrongly_entered(updates: Mapping[str, _Update], events: Sequence[_Row]) -> Iterator[str]:
    entered: dict[str | None, list[_Row]] = defaultdict(list)
    for event in events:
        after = event["payment_transaction_id_after"]
        if after != event["payment_transaction_id_before"]:
            entered[after].append(event)
    for name, update in updates.items():
        found = entered[name]
        if update.acknowledged_at < inf and not found:
            yield f"{name} was acknowledged, and is not in the ledger"
        if not update.may_be_done and found:
            yield f"{name} was refused, and is in the ledger"
        if len(found) > 1:
            yield f"{name} is in the ledger {len(found)} times"
        for event in found:
            sent = {f: getattr(update.request, f) for f in PAYMENT_COLUMNS}
            if any(value and event[f"{field}_after"] != value for field, value in sent.items()):
                yield f"{name} is in the ledger with other values than were sent"


def _unexplained(events: Sequence[_Row], rows: Sequence[_Row]) -> Iterator[str]:
    histories: dict[int, list[_Row]] = defaultdict(list)
    for event in events:
        histories[event["order_id"]].append(event)
    for row in rows:
        history = histories[row["id"]]
        for earlier, later in pairwise(history):
            if _fields(earlier, "_after") != _fields(later, "_before"):
                yield f"between events {earlier['id']} and {later['id']}, a change is missing"
        if history and _fields(history[-1], "_after") != _fields(row):
            yield f"order {row['id']} is not what its last event has left"


def _fields(row: _Row, suffix: str = "") -> list[Any]:
    return [row[f"{column}{suffix}"] for column in PAYMENT_COLUMNS]


def _out_of_order(updates: Mapping[str, _Update], events: Sequence[_Row]) -> Iterator[str]:
    # The earliest acknowledgement among the later events of the same order.
    acknowledged: dict[int, float] = defaultdict(lambda: inf)
    for event in reversed(events):
        name, order_id = event["payment_transaction_id_after"], event["order_id"]
        if update := updates.get(name):
            if acknowledged[order_id] < update.began:
                yield f"{name} was sent after one was acknowledged that follows it in the ledger"
            acknowledged[order_id] = min(acknowledged[order_id], update.acknowledged_at)
