"""Reads the events that were refused: ``refused_payment_events``."""

from functools import cache
from typing import Any, Final, TypeAlias

from pypika import NamedParameter, Order, PostgreSQLQuery, Table, Tuple

from persistence import dialect as pg
from persistence import payment_states, queries
from persistence.database import Database
from persistence.models import OrderKey, RefusedEvent, RefusedFilter, Storefronts
from persistence.payment_terms import normalized
from persistence.queries import page_of_each_storefront

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

_refused = Table("refused_payment_events")

_AGE: Final = (_refused.first_refused_at, _refused.id)
_AFTER: Final = Tuple(NamedParameter("after_created_at"), NamedParameter("after_id"))

FILTERS: Final = {
    "order_id": _refused.order_id.eq,
    "reason": _refused.reason.eq,
    "payment_provider": normalized(_refused.payment_provider).eq,
    "storefront_id": _refused.storefront_id.eq,
    "refused_from": _refused.first_refused_at.gte,
    "refused_before": _refused.first_refused_at.lt,
}
"""What refused events can be listed by: the name of each parameter, and its condition.

A provider is compared as ``payment_states.normalized`` returns it, by an index of that.
"""


class RefusedEventLog:
    """Lists refused events.

    With ``storefronts``, the tenant scope of a caller, events for orders of other storefronts do
    not exist for it, nor those for which there was no order.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_events(
        self,
        wanted: RefusedFilter,
        limit: int,
        after: OrderKey | None = None,
        storefronts: Storefronts = None,
    ) -> list[RefusedEvent]:
        """Return up to ``limit`` events, by when they were first refused, newest first.

        Those after ``after``, or the first ones. Raises a PersistenceError.
        """
        filters = {name: getattr(wanted, name) for name in FILTERS}
        given = {name: value for name, value in filters.items() if value is not None}
        if wanted.payment_provider is not None:
            given["payment_provider"] = payment_states.normalized(wanted.payment_provider)
        scope = queries.scope_values(storefronts)
        query = list_refused(tuple(given), after_key=after is not None, scoped=bool(scope))
        values = {"limit": limit, **queries.after_values(after), **given, **scope}
        rows = await self._database.fetch_all(query, values)
        return [RefusedEvent._make(row.values()) for row in rows]

    async def list_oldest(
        self,
        order_id: int,
        limit: int,
        after: OrderKey | None = None,
        storefronts: Storefronts = None,
    ) -> list[RefusedEvent]:
        """Return up to ``limit`` events for an order, by when they were first refused.

        Those after ``after``, or the first ones. Raises a PersistenceError.
        """
        scope = queries.scope_values(storefronts)
        query = list_oldest_refused(after_key=after is not None, scoped=bool(scope))
        values = {"order_id": order_id, "limit": limit, **queries.after_values(after), **scope}
        rows = await self._database.fetch_all(query, values)
        return [RefusedEvent._make(row.values()) for row in rows]


@cache
def list_refused(filters: tuple[str, ...], *, after_key: bool, scoped: bool = False) -> str:
    """Return the SELECT of ``:limit`` events, newest first, with the parameters of ``filters``.

    ``filters`` are some of ``FILTERS``. With ``after_key``, the list continues after the event
    with ``:after_created_at``, its first refusal, and ``:after_id``.
    """
    query: _Builder = PostgreSQLQuery.from_(_refused)
    query = query.select(*(_refused[name] for name in RefusedEvent._fields))
    if after_key:
        # First, for the reason that ``list_queries.list_orders`` has.
        query = query.where(Tuple(*_AGE) < _AFTER)
    for name in filters:
        query = query.where(FILTERS[name](NamedParameter(name)))
    if scoped:
        page = Table("page")
        pages = page_of_each_storefront(
            lambda storefront: _newest(query.where(_refused.storefront_id == storefront), _refused)
        )
        query = _newest(pages, page).select(*(page.field(name) for name in RefusedEvent._fields))
        return str(query)
    return str(_newest(query, _refused))


@cache
def list_oldest_refused(*, after_key: bool, scoped: bool = False) -> str:
    """Return the SELECT of ``:limit`` events for the order ``:order_id``, oldest first.

    With ``after_key``, the list continues after the event with ``:after_created_at``, its first
    refusal, and ``:after_id``.
    """
    query: _Builder = PostgreSQLQuery.from_(_refused)
    query = query.select(*(_refused[name] for name in RefusedEvent._fields))
    query = query.where(_refused.order_id == NamedParameter("order_id"))
    if after_key:
        query = query.where(Tuple(*_AGE) > _AFTER)
    if scoped:  # nearly all events for an order are of one storefront
        query = query.where(_refused.storefront_id == pg.any_(NamedParameter("storefronts")))
    return str(query.orderby(*_AGE).limit(NamedParameter("limit")))


def _newest(query: _Builder, of: Table) -> _Builder:
    query = query.orderby(of.first_refused_at, of.id, order=Order.desc)
    return query.limit(NamedParameter("limit"))
