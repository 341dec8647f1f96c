"""The SQL that finds the order of a payment, by one of the payment's references.

One statement looks in three places, each only where the one before has nothing: orders that have
the reference now, orders that had it, and orders for which an event with it was refused. Each is
reached through an index of the reference.
"""

from functools import cache
from itertools import count
from typing import Any, Final, TypeAlias

from pypika import AliasedQuery, Parameter, PostgreSQLQuery, Table
from pypika.functions import Coalesce
from pypika.terms import Bracket, Criterion, ExistsCriterion, Term, ValueWrapper

from persistence import dialect as pg
from persistence.models import Order
from persistence.payment_terms import normalized

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

_orders = Table("orders")
_events = Table("order_payment_events")
_later = Table("order_payment_events").as_("later")
_refused = Table("refused_payment_events")

REFERENCES: Final = (
    "payment_session_id",
    "payment_intent_id",
    "payment_transaction_id",
    "payment_idempotency_key",
)
"""The payment columns that an order can be found by."""

MAX_CANDIDATES: Final = 20
"""How many orders the statement returns at most."""

# How many events with the reference are read at most in each place: a reference such as
# "undefined" may have come with every order of a shop.
_MAX_EVENTS: Final = 1_000


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
    had = _orders_of(_events, _introduced(reference))
    refused = _orders_of(_refused, _refused[reference] == Parameter("$1"))
    refused = refused.where(_refused.written.negate())
    if provider is not None:
        had = had.where(_is_introduced_by(reference, provider))
        given = Coalesce(_refused.payment_provider, _refused.order_payment_provider)
        refused = refused.where(normalized(given) == provider)
    if storefronts is not None:
        had, refused = (
            each.where(_orders.storefront_id == pg.any_(storefronts)) for each in (had, refused)
        )
    places = {
        "has": had.where(_orders[reference] == Parameter("$1")),
        "had": had,
        "refused": refused,
    }
    return str(_first_of(places))


def _orders_of(table: Table, condition: Criterion) -> _Builder:
    query: _Builder = PostgreSQLQuery.from_(table).join(_orders)
    query = query.on(_orders.id == table.order_id)
    return query.where(condition).select(*(_orders[name] for name in Order._fields))


def _introduced(reference: str) -> Criterion:
    """Return whether an event of the history has brought ``$1``: the condition of an index."""
    if reference == "payment_idempotency_key":
        return _events.idempotency_key == Parameter("$1")
    before, after = _events[f"{reference}_before"], _events[f"{reference}_after"]
    return (after == Parameter("$1")) & pg.is_distinct_from(after, before)


def _is_introduced_by(reference: str, provider: Term) -> Criterion:
    later: _Builder = (
        PostgreSQLQuery.from_(_later)
        .select(_later.id)
        .where(_later.order_id == _events.order_id)
        .where(_later.id > _events.id)
        .where(_later[f"{reference}_after"] == Parameter("$1"))
        .where(normalized(_later.payment_provider_after) == provider)
    )
    given = _events.payment_provider_after
    by_later = given.isnull() & ExistsCriterion(later)
    return Bracket((normalized(given) == provider) | Bracket(by_later))


def _first_of(places: dict[str, _Builder]) -> _Builder:
    """Return the distinct orders of the first of ``places`` that has any."""
    query: _Builder = PostgreSQLQuery
    every: Any = None
    names = list(places)
    for number, (name, events) in enumerate(places.items()):
        limited = events.limit(_MAX_EVENTS).as_("limited")
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
