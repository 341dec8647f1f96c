"""The SQL that finds the order of a payment, by one of the payment's references.

One statement looks in three places, each only where the one before has nothing: orders that have
the reference now, orders that had it, and orders for which an event with it was refused. Each is
reached through an index of the reference.

An order that had a session or an intent is found by the event that replaced or removed it. If there
is no such event, the order is not found: the row was deleted and restored, say, or was changed with
triggers disabled.
"""

from functools import cache
from itertools import count
from typing import Any, Final, TypeAlias

from pypika import AliasedQuery, Parameter, PostgreSQLQuery, Table
from pypika.functions import Coalesce
from pypika.queries import Selectable
from pypika.terms import Bracket, Criterion, ExistsCriterion, Term, ValueWrapper

from persistence import dialect as pg
from persistence.models import Order
from persistence.payment_terms import normalized

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

_orders = Table("orders")
_events = Table("order_payment_events")
_brought = Table("order_payment_events").as_("brought")
_later = Table("order_payment_events").as_("later")
_refused = Table("refused_payment_events")

_COLUMNS: Final = [_orders[name] for name in Order._fields]

_TRANSACTION: Final = "payment_transaction_id"
_KEY: Final = "payment_idempotency_key"

REFERENCES: Final = ("payment_session_id", "payment_intent_id", _TRANSACTION, _KEY)
"""The payment columns that an order can be found by."""

MAX_CANDIDATES: Final = 20
"""How many orders the statement returns at most."""

# How many orders or events are taken at most in each place: a reference such as "undefined" may
# have come with every order of a shop.
_MAX_ROWS: Final = 1_000


@cache
def find_order(reference: str, *, by_provider: bool, scoped: bool = False) -> str:
    """Return the SELECT of up to ``MAX_CANDIDATES`` orders with ``$1`` as ``reference``.

    Rows have the fields of ``Order``, and whether the order is one that has refused the reference
    and never had it. All rows are from the same place; see this module. ``reference`` is one of
    ``REFERENCES``.

    With ``by_provider``, the event that brought the reference is of the provider ``$2``, as
    ``payment_states.normalized`` returns it; or where that event has none, a later event of the
    order with the same reference is. An event of the history is of the provider that the order has
    after it, a refused one of that which it names, or else of the order's. With ``scoped``, only
    orders of the storefronts in the last parameter, an array.
    """
    numbers = count(2)
    provider = Parameter(f"${next(numbers)}") if by_provider else None
    storefronts = Parameter(f"${next(numbers)}") if scoped else None
    had = _orders_of(_events, _had(reference))
    has = had if reference == _TRANSACTION else PostgreSQLQuery.from_(_orders).select(*_COLUMNS)
    has = has.where(_orders[reference] == Parameter("$1"))
    refused = _orders_of(_refused, _refused[reference] == Parameter("$1"))
    refused = refused.where(_refused.written.negate())
    if provider is not None:
        is_of_provider = _is_introduced_by(reference, provider)
        has, had = (each.where(is_of_provider) for each in (has, had))
        given = Coalesce(_refused.payment_provider, _refused.order_payment_provider)
        refused = refused.where(normalized(given) == provider)
    places = {"has": has, "had": had, "refused": refused}
    if storefronts is not None:
        in_scope = _orders.storefront_id == pg.any_(storefronts)
        places = {name: each.where(in_scope) for name, each in places.items()}
    return str(_first_of(places))


def _orders_of(table: Table, condition: Criterion) -> _Builder:
    query: _Builder = PostgreSQLQuery.from_(table).join(_orders)
    query = query.on(_orders.id == table.order_id)
    return query.where(condition).select(*_COLUMNS)


def _had(reference: str) -> Criterion:
    """Return the condition of the events by which an order is found that had ``$1``.

    It is the condition of an index. A transaction or a key is indexed with the event that brought
    it. A session or an intent is indexed with the event that replaced or removed it: the order that
    has it now is found by an index of ``orders``.
    """
    if reference in (_TRANSACTION, _KEY):
        return _introduces(_events, reference)
    before, after = _events[f"{reference}_before"], _events[f"{reference}_after"]
    return (before == Parameter("$1")) & pg.is_distinct_from(after, before)


def _introduces(event: Selectable, reference: str) -> Criterion:
    """Return whether ``event``, of the history, has brought ``$1``."""
    if reference == _KEY:
        return event.idempotency_key == Parameter("$1")
    before, after = event[f"{reference}_before"], event[f"{reference}_after"]
    return (after == Parameter("$1")) & pg.is_distinct_from(after, before)


def _is_introduced_by(reference: str, provider: Term) -> Criterion:
    """Return whether an event of ``provider`` has brought ``$1`` to the order."""
    later: _Builder = (
        PostgreSQLQuery.from_(_later)
        .select(_later.id)
        .where(_later.order_id == _brought.order_id)
        .where(_later.id > _brought.id)
        .where(_later[f"{reference}_after"] == Parameter("$1"))
        .where(normalized(_later.payment_provider_after) == provider)
    )
    given = _brought.payment_provider_after
    by_later = given.isnull() & ExistsCriterion(later)
    brought: _Builder = (
        PostgreSQLQuery.from_(_brought)
        .select(_brought.id)
        .where(_brought.order_id == _orders.id)
        .where(_introduces(_brought, reference))
        .where(Bracket((normalized(given) == provider) | Bracket(by_later)))
    )
    # OFFSET 0, so that PostgreSQL looks at one order after the other, and stops at the limit. It
    # would make a join of the EXISTS otherwise, and read the history of all orders for it. PyPika
    # leaves out an offset that is a plain 0.
    return ExistsCriterion(brought.offset(ValueWrapper(0)))


def _first_of(places: dict[str, _Builder]) -> _Builder:
    """Return the distinct orders of the first of ``places`` that has any."""
    query: _Builder = PostgreSQLQuery
    every: Any = None
    names = list(places)
    for number, (name, rows) in enumerate(places.items()):
        limited = rows.limit(_MAX_ROWS).as_("limited")
        found: _Builder = PostgreSQLQuery.from_(limited)
        for before in names[:number]:
            # Not correlated: where it is false, PostgreSQL does not run the rest.
            found = found.where(ExistsCriterion(_all_of(before)).negate())
        columns = [limited.field(each) for each in Order._fields]
        found = found.select(*columns, ValueWrapper(name == "refused").as_("refused")).distinct()
        query = query.with_(found.orderby(limited.id).limit(MAX_CANDIDATES), name)
        every = _all_of(name) if every is None else every.union_all(_all_of(name))
    return query.from_(every.as_("found")).select("*")


def _all_of(name: str) -> _Builder:
    return PostgreSQLQuery.from_(AliasedQuery(name)).select("*")
