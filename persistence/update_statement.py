"""The UPDATE of a payment: all rules in one statement, assembled by PyPika.

PostgreSQL checks the conditions again for a row that it has waited for, so that no other update
comes between the check and the write. ``update_terms`` has them.

There is one text for each set of columns, and three kinds of it: a plain one; a rich one, with what
few requests have (times, amounts, a currency, an etag, an override); and one for the second try,
where the first has written nothing. With a text for each optional field there would be thousands,
and a cache of prepared statements that never has the one that is needed.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

from pypika import AliasedQuery, PostgreSQLQuery, Table
from pypika.terms import ExistsCriterion

from persistence import dialect as pg
from persistence.models import PAYMENT_COLUMNS, Order, PaymentUpdate
from persistence.payment_states import PaymentState, normalized
from persistence.update_terms import Shape, UpdateTerms, set_local

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

_orders = Table("orders")

LOCK_TIMEOUT: Final = "10ms"
"""How long an update with a ``lock_timeout`` waits for a lock."""

_SECOND: Final = timedelta(seconds=1)


class Rules(NamedTuple):
    """What the statement checks and derives from the state of the order."""

    refusals: bytes
    """The table of ``decision.refusals``."""
    targets: PaymentState | bytes | None
    """The fixed state, or the table of ``decision.targets``; None without a status."""
    is_reversal: bool
    version: int | None
    """The ``payment_version`` that the order must have, 0 for none; None for any."""
    second: "Second | None" = None


class Second(NamedTuple):
    """What only a second try has."""

    states: str
    """JSON of all known words, normalized, and the numbers of their states."""
    may_be_first_use: bool
    """Of its key: the first try has not found that the key is used."""
    is_further_use: bool
    """Of its key: an earlier event of the order has it, and is not the same request."""


class Recorded(NamedTuple):
    """What the history keeps of the request besides the payment."""

    request_id: str
    caller: str
    named: int
    """The bits of ``named_fields``: which fields the request has set."""
    digest: str
    """Of a request with a key; else empty."""
    details: str
    """JSON of the columns of the history that have their values as the request has them."""

    @property
    def text(self) -> str:
        """The setting ``listings.payment_event``, which the trigger reads."""
        return (
            f"{self.request_id}\x1f{self.caller}\x1f{self.named}\x1f{self.digest}\x1f{self.details}"
        )


def arguments(
    shape: Shape,
    update: PaymentUpdate,
    rules: Rules,
    recorded: Recorded,
    scope: Sequence[object],
) -> list[object]:
    """Return the values of the parameters of ``statement(shape)``, without the first, the id."""
    values: list[object] = [recorded.text]
    values += [value for value in update[: len(PAYMENT_COLUMNS)] if value is not None]
    values.append(rules.refusals)
    if rules.targets is not None:
        values.append(rules.targets)
    if update.payment_provider is not None:
        values.append(normalized(update.payment_provider))
    if recorded.digest:
        values.append(recorded.digest)
    if shape.is_rich:
        if shape.has_fixed_state:
            # A plain PAID keeps no time: pollers report it with their own clock. It needs none:
            # no state that comes before PAID may follow it.
            is_paid = rules.targets is PaymentState.PAID
            values.append(None if is_paid else update.payment_event_time)
        elif rules.targets is not None:
            values += [update.payment_event_time, rules.is_reversal]
        values.append(_late_limit(update.payment_event_time))
        is_set = rules.is_reversal or update.override_reason is not None
        for amount in (update.captured_amount, update.refunded_amount):
            values += [amount, amount if is_set else None]
        values += [update.currency, rules.version]
    if rules.second is not None:
        values.append(rules.second.states)
        if recorded.digest:
            values += [rules.second.may_be_first_use, rules.second.is_further_use]
    return [*values, *scope]


def _late_limit(time: datetime | None) -> datetime | None:
    """Return the first of the times of an order before which ``time`` is late."""
    return None if time is None else time.replace(microsecond=0) + _SECOND


@cache
def statement(shape: Shape, *, lock_timeout: bool = False) -> str:
    """Return ``UPDATE orders SET … WHERE id = $1 … RETURNING …``.

    The row has the fields of ``Order``. No row is returned, and nothing is written, when there is
    no such order, when the rules refuse the update, when its state is null and its word is not
    "pending", when another version is expected, when the currency is another, or when the key was
    used for the same request. When it was used for another one, and the order has a later key, the
    statement fails, by a unique index.

    The row of a second try has, in the end, whether it was written; if not, it is the order as it
    stands. A null state and a later key do not keep it from writing.

    With a ``lock_timeout``, it fails when it has to wait for a lock for ``LOCK_TIMEOUT``.

    Raises ValueError when it would set nothing, or what is no payment column.
    """
    if list(shape.columns) != [name for name in PAYMENT_COLUMNS if name in shape.columns]:
        raise ValueError(f"expected some of {PAYMENT_COLUMNS}, in order, got {shape.columns}")
    if not shape.columns and not shape.is_rich:
        raise ValueError("expected at least one payment column")
    terms = UpdateTerms(shape)
    query: _Builder = PostgreSQLQuery.update(_orders)
    for column, value in terms.assignments():
        query = query.set(column, value)
    for condition in terms.conditions():
        query = query.where(condition)
    if lock_timeout:
        query = query.where(set_local("lock_timeout", LOCK_TIMEOUT))
    update = query.returning(*(_orders[name] for name in Order._fields))
    return _or_present_order(update, terms) if shape.is_second else str(update)


def _or_present_order(update: _Builder, terms: UpdateTerms) -> str:
    """Return ``update`` and, for when it writes nothing, the SELECT of the order."""
    name = "written"
    written = AliasedQuery(name)
    rows: _Builder = PostgreSQLQuery.from_(written)
    rows = rows.select(*(written.field(each) for each in Order._fields), True)
    present: _Builder = PostgreSQLQuery.from_(_orders)
    present = present.select(*(_orders[each] for each in Order._fields), False)
    present = present.where(_orders.id == terms.order_id)
    if terms.shape.is_scoped:
        present = present.where(_orders.storefront_id == pg.any_(terms.storefronts))
    nothing = ExistsCriterion(PostgreSQLQuery.from_(written).select(written.id)).negate()
    # PyPika puts a WITH into the first SELECT of a UNION, where it cannot write.
    return f"WITH {name} AS ({update}) {rows.union_all(present.where(nothing))}"
