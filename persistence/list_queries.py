"""The SQL of the lists of orders, assembled by PyPika. See ``queries`` for what holds for all.

A page costs the same wherever it is, if an index has its orders in the order of the list. For a
filter with several values, there is no such index. Then a page is read for each value, and they are
merged: the newest 50 orders of three statuses are among the newest 50 of each. So it is with
statuses, with states and with the storefronts of a caller. Statuses have a parameter each, because
the best index for a status depends on how many orders have it.

States are literals in the text, because PostgreSQL uses a partial index only where the text implies
its condition. Orders whose state is null count by their word, and make up parts of their own: those
whose payment has not begun, with the word "pending", and those that were changed by hand or by a
worker of the version before, which are a range of the index of states.
"""

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from pypika import Case, NamedParameter, Order, PostgreSQLQuery, Table, Tuple
from pypika.functions import Cast
from pypika.terms import Bracket, Criterion

from persistence import dialect as pg
from persistence.models import Order as OrderRecord
from persistence.models import OrderFilter
from persistence.payment_states import ENDED, SETTLED, UNPAID, PaymentState
from persistence.payment_terms import normalized
from persistence.queries import page_of_each_storefront
from persistence.status_words import StatusWords

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

# There are texts for each set of states, and callers may ask for any.
_CACHED_TEXTS: Final = 256

_orders = Table("orders")
_state: Any = _orders.payment_state
_word: Any = _orders.payment_status
_captured, _refunded = _orders.captured_amount, _orders.refunded_amount

_AGE: Final = (_orders.created_at, _orders.id)
_SINCE: Final = (_orders.payment_status_since, _orders.id)
_AFTER: Final = Tuple(NamedParameter("after_created_at"), NamedParameter("after_id"))
_LIMIT: Final = NamedParameter("limit")

FILTERS: Final = {
    "payment_status": _orders.payment_status.eq,
    "payment_provider": _orders.payment_provider.eq,
    "storefront_id": _orders.storefront_id.eq,
    "buyer_id": _orders.buyer_id.eq,
    "created_from": _orders.created_at.gte,
    "created_before": _orders.created_at.lt,
    "order_number": _orders.order_number.eq,
    "order_status": _orders.status.eq,
}
"""The filters with one value: the name of each parameter, and its condition."""
AMOUNTS_DISAGREE: Final = "amounts_disagree"
"""The filter without a value: only orders whose amounts do not fit each other or the state."""


class _Part(NamedTuple):
    """Some of the orders of a list."""

    conditions: Sequence[Any] = ()
    is_unclassified: bool = False
    """Whether their state is null, and their word is not that of an unpaid order."""
    is_small: bool = False
    """Whether an index has little besides these orders, so that none is sought by storefront."""


def filters_of(wanted: OrderFilter) -> tuple[str, ...]:
    """Return the names of the filters that are set, except the states and the statuses."""
    filters = [name for name in FILTERS if getattr(wanted, name) is not None]
    return tuple(filters + [AMOUNTS_DISAGREE] * wanted.amounts_disagree)


def values_of(wanted: OrderFilter, words: StatusWords) -> dict[str, object]:
    """Return the values of the parameters of ``list_orders`` that its filters have."""
    filters, states = filters_of(wanted), wanted.payment_states
    values = {name: getattr(wanted, name) for name in filters if name in FILTERS}
    if _has_status_pages(filters, states):
        values |= {_status(n): status for n, status in enumerate(wanted.payment_statuses)}
    elif wanted.payment_statuses:
        values["payment_statuses"] = list(wanted.payment_statuses)
    if states:
        known = frozenset(PaymentState) - {PaymentState.UNKNOWN}
        is_unknown_wanted = PaymentState.UNKNOWN in states
        values["words"] = words.words_of(known - states if is_unknown_wanted else states)
    if wanted.amounts_disagree:
        values |= {_words_parameter(state): words.words_of([state]) for state in _WITH_AMOUNTS}
    return values


def stuck_values(words: StatusWords) -> dict[str, object]:
    """Return the values of the parameters of ``list_stuck`` that have normalized words."""
    return {"words": words.words_of(ENDED | SETTLED)}


@lru_cache(_CACHED_TEXTS)
def list_orders(
    filters: tuple[str, ...],
    *,
    states: frozenset[PaymentState] = frozenset(),
    statuses: int = 0,
    after_key: bool,
    scoped: bool = False,
) -> str:
    """Return the SELECT of ``:limit`` orders, newest first, with the parameters of ``filters``.

    ``filters`` are some of ``FILTERS``, and ``AMOUNTS_DISAGREE``. With ``states``, only orders in
    one of them; with ``statuses``, only orders with one of so many. ``values_of`` has the values.

    With ``after_key``, the list continues after the order with ``:after_created_at`` and
    ``:after_id``.
    """
    pages = []
    for part in _parts(filters, states, statuses):
        query: _Builder = PostgreSQLQuery.from_(_orders)
        if after_key:
            # A comparison of rows, which is one range of an index. It comes first, because
            # PostgreSQL starts to read at the first of two upper limits: at `created_before`, it
            # would read all pages before this one.
            query = query.where(Tuple(*_AGE) < _AFTER)
        for name in filters:
            if name in FILTERS:
                query = query.where(FILTERS[name](NamedParameter(name)))
        for condition in part.conditions:
            query = query.where(condition)
        if scoped and not part.is_small:
            pages.append(_of_each_storefront(query))
        else:
            query = query.where(_in_scope()) if scoped else query
            pages.append(_List(query, _orders, part.is_unclassified))
    whole = pages[0] if len(pages) == 1 else _merged(pages)
    columns = (whole.orders.field(name) for name in OrderRecord._fields)
    return str(_newest(whole).select(*columns))


class _List(NamedTuple):
    """A query that selects nothing yet, and the name by which it selects from the orders.

    A name only, since PyPika writes a whole subquery for each look at one of its columns.
    """

    query: _Builder
    orders: Table
    is_unclassified: bool = False


def _of_each_storefront(orders: _Builder) -> _List:
    """Return the newest of ``orders`` of each storefront in the array ``:storefronts``."""
    pages = page_of_each_storefront(
        lambda storefront: _newest(
            _List(orders.where(_orders.storefront_id == storefront), _orders)
        ).select("*")
    )
    return _List(pages, Table("page"))


def _merged(lists: Sequence[_List]) -> _List:
    """Return the orders of ``lists``, which have none in common."""
    # All columns, since the text would have each of them for each list.
    pages = [_newest(each).select(each.orders.star) for each in lists]
    union = pages[0]
    for page in pages[1:]:
        union = union.union_all(page)
    return _List(PostgreSQLQuery.from_(union.as_("merged")), Table("merged"))


def _newest(orders: _List) -> _Builder:
    columns = ["created_at", "id"]
    if orders.is_unclassified:
        # It is null in all of them. But PostgreSQL counts only an equality as a fixed value, not
        # IS NULL: it reads the index in its order only if ORDER BY has this column, too.
        columns.insert(0, "payment_state")
    by = (orders.orders.field(name) for name in columns)
    return orders.query.orderby(*by, order=Order.desc).limit(_LIMIT)


def _in_scope() -> Criterion:
    return _orders.storefront_id == pg.any_(NamedParameter("storefronts"))


def _parts(
    filters: tuple[str, ...], states: frozenset[PaymentState], statuses: int
) -> Iterator[_Part]:
    """Yield what a list is made of; no order is in two parts."""
    has_amounts = AMOUNTS_DISAGREE in filters
    further = []
    if statuses and not _has_status_pages(filters, states):
        further.append(_word == pg.any_(NamedParameter("payment_statuses")))
    if states:
        parts = _parts_by_state(states)
    elif has_amounts:
        is_classified = Bracket(_state.notnull() | (_word == UNPAID))
        parts = iter([_Part([is_classified]), _unclassified()])
    elif statuses and not further:
        parts = (_Part([_word == NamedParameter(_status(n))]) for n in range(statuses))
    else:
        parts = iter([_Part()])
    for part in parts:
        conditions = [*part.conditions, *further]
        if has_amounts:
            conditions.append(_disagree(is_unclassified=part.is_unclassified))
        yield part._replace(
            conditions=conditions,
            is_small=part.is_unclassified or _are_few(filters),
        )


def _are_few(filters: tuple[str, ...]) -> bool:
    """Return whether an index finds few orders by these filters."""
    return "order_number" in filters or AMOUNTS_DISAGREE in filters


def _has_status_pages(filters: tuple[str, ...], states: frozenset[PaymentState]) -> bool:
    """Return whether there is a page for each status, and not one for each of something else."""
    return not states and not _are_few(filters)


def _status(number: int) -> str:
    return f"payment_status_{number}"


def _unclassified(*conditions: Any) -> _Part:
    return _Part([_state.isnull(), _word != UNPAID, *conditions], is_unclassified=True)


def _parts_by_state(states: frozenset[PaymentState]) -> Iterator[_Part]:
    for state in sorted(states):
        if state is PaymentState.PENDING:
            # Most pending orders have this word. The index of words has them by their age, the
            # index of states has the others.
            is_pending = _state.isnull() | _is_in(state)
            yield _Part([_word == UNPAID, Bracket(is_pending)])
            yield _Part([_is_in(state), _word != UNPAID])
        else:
            # No index has the paid ones: they are most orders, and found by age.
            yield _Part([_is_in(state)])
    word, words = normalized(_word), NamedParameter("words")
    is_wanted = word != pg.all_(words) if PaymentState.UNKNOWN in states else word == pg.any_(words)
    yield _unclassified(is_wanted)


def _is_in(state: PaymentState) -> Any:
    return _state == state.value


def _words_parameter(state: PaymentState) -> str:
    return f"words_{state.name.lower()}"


_WITH_AMOUNTS: Final = (
    PaymentState.PAID,
    PaymentState.REFUNDED,
    PaymentState.PARTIALLY_REFUNDED,
)
"""The states that say something of the amounts."""


def _disagree(*, is_unclassified: bool) -> Any:
    """Return whether amounts disagree; of classified orders, it is the condition of the index."""
    state: Any = _state
    if is_unclassified:
        by_word = Case()
        for each in _WITH_AMOUNTS:
            words = pg.any_(NamedParameter(_words_parameter(each)))
            by_word = by_word.when(normalized(_word) == words, each.value)
        state = Cast(by_word, "SMALLINT")
    return Bracket(pg.payment_amounts_disagree(state, _captured, _refunded, _orders.total_amount))


@cache
def list_stuck(*, by_provider: bool, after_key: bool, scoped: bool = False) -> str:
    """Return the SELECT of ``:limit`` orders whose payment is open or unknown, longest first.

    Only those whose state has not changed since ``:unchanged_since``. With ``after_key``, the list
    continues after the order with ``:after_created_at``, which is its ``payment_status_since``, and
    ``:after_id``. With ``by_provider``, only those of ``:payment_provider``, which is normalized.
    ``:words`` has the value of ``stuck_values``.
    """
    query: _Builder = PostgreSQLQuery.from_(_orders)
    query = query.select(*(_orders.field(name) for name in OrderRecord._fields))
    # The first two conditions are those of the index.
    query = query.where(_orders.payment_provider.notnull())
    query = query.where(Bracket(_state.isnull() | (_state < min(ENDED).value)))
    is_undecided = normalized(_word) != pg.all_(NamedParameter("words"))
    query = query.where(Bracket(_state.notnull() | is_undecided))
    query = query.where(_orders.payment_status_since < NamedParameter("unchanged_since"))
    if after_key:
        query = query.where(Tuple(*_SINCE) > _AFTER)
    if by_provider:
        provider = normalized(_orders.payment_provider)
        query = query.where(provider == NamedParameter("payment_provider"))
    if scoped:
        query = query.where(_in_scope())
    return str(query.orderby(*_SINCE).limit(_LIMIT))
