"""Refused events: the rows of ``refused_payment_events``, and the same as the model has them."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
from psycopg.rows import dict_row

from persistence.models import PAYMENT_COLUMNS
from persistence.payment_states import PaymentState
from tests.support import by_model
from tests.support.payment_model import Request
from tests.support.payment_shop import Refused, Shop, told_by

_WORDS: Final = by_model.words()

_REQUESTED: Final = (
    *PAYMENT_COLUMNS,
    *("payment_event_time", "captured_amount", "refunded_amount", "currency", "override_reason"),
)
_OF_ORDER: Final = (*PAYMENT_COLUMNS, "payment_event_time", "payment_state")

Digest: TypeAlias = tuple[object, ...]


class Entry(NamedTuple):
    """What is on record of equal events."""

    times: int
    request: Request
    """The first one."""
    found: tuple[object, ...] | None
    """The order's payment then; None if there was no order."""


def in_table(connection: psycopg.Connection[Any], names: Mapping[int, str]) -> dict[Digest, Entry]:
    """Return what is on record of the orders with these ids, by what makes events equal."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "SELECT * FROM refused_payment_events WHERE order_id = ANY(%s)", [list(names)]
        ).fetchall()
    found: dict[Digest, Entry] = {}
    for row in rows:
        time = by_model.microseconds(row["payment_event_time"])
        values = {name: row[name] for name in _REQUESTED} | {"payment_event_time": time}
        entry = Entry(row["times"], Request(**values), _order_in(row))
        told = told_by(entry.request, entry.found, _WORDS)
        key = (names[row["order_id"]], row["reason"], row["written"], told)
        assert key not in found  # equal events are one row
        found[key] = entry
    return found


def in_model(shop: Shop) -> dict[Digest, Entry]:
    """Return the same of the model's orders."""
    return {
        (
            each.order,
            str(each.reason),
            each.written,
            told_by(each.request, each.found, _WORDS),
        ): Entry(each.times, _as_kept(each.request), _order_of(each))
        for each in shop.refused
    }


def _as_kept(request: Request) -> Request:
    return request.as_compared()._replace(override_reason=request.override_reason)


def _order_in(row: Mapping[str, Any]) -> tuple[object, ...] | None:
    if row["storefront_id"] is None:
        return None
    values = {name: row[f"order_{name}"] for name in _OF_ORDER}
    values["payment_event_time"] = by_model.microseconds(values["payment_event_time"])
    values["payment_state"] = PaymentState(values["payment_state"]).name
    return tuple(values.values())


def _order_of(refused: Refused) -> tuple[object, ...] | None:
    if refused.found is None:
        return None
    return tuple(getattr(refused.found, name) for name in _OF_ORDER)
