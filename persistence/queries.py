"""The SQL, assembled by PyPika. Values travel as parameters only and never stand in the text.

Each text is kept: PyPika takes longer to write a statement than PostgreSQL to run it.
"""

from collections.abc import Iterable
from functools import cache
from itertools import count
from typing import Any, Final, TypeAlias

from pypika import CustomFunction, Field, Order, Parameter, PostgreSQLQuery, Table, Tuple
from pypika.enums import Comparator, JoinType
from pypika.functions import Cast
from pypika.queries import Selectable
from pypika.terms import (
    BasicCriterion,
    Criterion,
    EmptyCriterion,
    ExistsCriterion,
    Interval,
    Term,
)

from persistence.models import PAYMENT_COLUMNS, PaymentEvent, Storefronts
from persistence.models import Order as OrderRecord
from persistence.statuses import OPEN

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

_orders = Table("orders")
_events = Table("order_payment_events")
_others = Table("order_payment_events").as_("others")

_all_of = CustomFunction("ALL", ["array"])
_any_of = CustomFunction("ANY", ["array"])
_clock_timestamp = CustomFunction("clock_timestamp")
_greatest = CustomFunction("greatest", ["first", "second"])
_emit_message = CustomFunction("pg_logical_emit_message", ["transactional", "prefix", "content"])
_set_config = CustomFunction("set_config", ["name", "value", "is_local"])
_unnest = CustomFunction("unnest", ["array"])
_current_snapshot = CustomFunction("pg_current_snapshot")
_snapshot_xmin = CustomFunction("pg_snapshot_xmin", ["snapshot"])
_snapshot_xmax = CustomFunction("pg_snapshot_xmax", ["snapshot"])
_visible_in = CustomFunction("pg_visible_in_snapshot", ["transaction", "snapshot"])

_AGE = (_orders.created_at, _orders.id)

REFERENCES: Final = (
    "payment_session_id",
    "payment_intent_id",
    "payment_transaction_id",
    "payment_idempotency_key",
)
"""The payment columns that an order can be found by."""

FILTERS: Final = {
    "payment_status": _orders.payment_status.eq,
    "payment_provider": _orders.payment_provider.eq,
    "storefront_id": _orders.storefront_id.eq,
    "buyer_id": _orders.buyer_id.eq,
    "created_from": _orders.created_at.gte,
    "created_before": _orders.created_at.lt,
}
"""What orders can be listed by: each makes a condition of a parameter."""


class _PostgreSQL(Comparator):
    is_distinct_from = " IS DISTINCT FROM "


def limiting(storefronts: Storefronts) -> tuple[list[int], ...]:
    """Return what comes after all other parameters, when a query is ``limited``: an array.

    Nothing, when it is not. A null array that stands for all storefronts would be simpler, and cost
    every caller who has them all.
    """
    return () if storefronts is None else (list(storefronts),)


LOCK_TIMEOUT: Final = "10ms"
"""How long an update with a ``lock_timeout`` waits for a lock."""


@cache
def update_payment(
    columns: tuple[str, ...], *, limited: bool = False, lock_timeout: bool = False
) -> str:
    """Return ``UPDATE orders SET … WHERE id = $1 … RETURNING …`` for these payment columns.

    ``$2`` is the request id and ``$3`` the caller, for the history. From ``$4`` on come the values
    of ``columns``, in their order. When ``payment_status`` is one of them, the next parameter is an
    array of the statuses that may not become the new one. The row comes back as the fields of
    ``Order``. None comes back, and nothing is written, when there is no such order, when its
    status may not become the new one, or when its idempotency key is the new one already.

    With a ``lock_timeout``, it fails when it has to wait for a lock for ``LOCK_TIMEOUT``.

    Raises ValueError when ``columns`` is empty or names something that is not a payment column.
    """
    if not columns or not set(columns) <= set(PAYMENT_COLUMNS):
        raise ValueError(f"expected some of {PAYMENT_COLUMNS}, got {columns}")
    numbers = count(4)
    values = {column: Parameter(f"${next(numbers)}") for column in columns}
    query: _Builder = PostgreSQLQuery.update(_orders)
    for column, value in values.items():
        query = query.set(_orders[column], value)
    # clock_timestamp(), because now() is when the transaction began: one that waited for a row
    # lock would put an earlier time over a later one. greatest(), because clocks step back.
    moved = _greatest(_clock_timestamp(), _orders.updated_at + Interval(microseconds=1))
    query = query.set(_orders.updated_at, moved)
    # PostgreSQL holds a row that it had to wait for against these conditions once more, so that no
    # other update comes in between the check and the write.
    query = query.where(_orders.id == Parameter("$1"))
    if "payment_status" in values:
        refusing = _all_of(Parameter(f"${next(numbers)}"))
        query = query.where(_orders.payment_status != refusing)
    if key := values.get("payment_idempotency_key"):
        query = query.where(_differs(_orders.payment_idempotency_key, key))
        query = query.where(_is_set("listings.request_fields", ",".join(columns)))
    if limited:
        query = query.where(_is_of(_orders, next(numbers)))
    query = query.where(_is_set("listings.request_id", Parameter("$2")))
    query = query.where(_is_set("listings.caller", Parameter("$3")))
    if lock_timeout:
        query = query.where(_is_set("lock_timeout", LOCK_TIMEOUT))
    return str(query.returning(*_columns(_orders, OrderRecord._fields)))


def _is_set(name: str, value: Term | str) -> Criterion:
    """Return a condition that always holds, and that sets ``name`` until the transaction ends.

    What begins with ``listings.`` is for the trigger that writes the history. A statement of its
    own would be a second round trip.
    """
    return _set_config(name, value, True).isnotnull()


@cache
def get_order(*, limited: bool = False) -> str:
    """Return the SELECT of the order with the id ``$1``."""
    query = _select_orders().where(_orders.id == Parameter("$1"))
    return str(query.where(_is_of(_orders, 2)) if limited else query)


@cache
def find_order(reference: str, *, by_provider: bool, limited: bool = False) -> str:
    """Return the SELECT of up to two orders that have ever had ``$1`` as ``reference``.

    ``reference`` is one of ``REFERENCES``. With ``by_provider``, only orders that have ever had
    ``$2`` as their provider.
    """
    numbers = count(2)
    if reference == "payment_idempotency_key":
        brought = _events.idempotency_key == Parameter("$1")
    else:
        before, after = _events[f"{reference}_before"], _events[f"{reference}_after"]
        brought = (after == Parameter("$1")) & _differs(after, before)  # as in the index
    query: _Builder = PostgreSQLQuery.from_(_events).join(_orders)
    query = query.on(_orders.id == _events.order_id).where(brought)
    if by_provider:
        of_provider = PostgreSQLQuery.from_(_others).select(_others.id)
        of_provider = of_provider.where(_others.order_id == _orders.id)
        provider = Parameter(f"${next(numbers)}")
        of_provider = of_provider.where(_others.payment_provider_after == provider)
        query = query.where(ExistsCriterion(of_provider))
    if limited:
        query = query.where(_is_of(_orders, next(numbers)))
    query = query.select(*_columns(_orders, OrderRecord._fields)).distinct()
    return str(query.orderby(_orders.id).limit(2))


@cache
def list_orders(filters: tuple[str, ...], *, after_key: bool, limited: bool = False) -> str:
    """Return the SELECT of orders, newest first.

    ``$1`` is how many. With ``after_key``, ``$2`` and ``$3`` are the ``created_at`` and ``id`` of
    the order before. Then come the values of ``filters``, some of ``FILTERS``, in their order.
    """
    numbers = count(4 if after_key else 2)
    query = _select_orders()
    if after_key:
        # One comparison of rows, which is one range of an index. It comes first, because
        # PostgreSQL begins to read at the first of two upper limits: at `created_before`, it would
        # go through all pages before this one.
        query = query.where(Tuple(*_AGE) < Tuple(Parameter("$2"), Parameter("$3")))
    for name in filters:
        query = query.where(FILTERS[name](Parameter(f"${next(numbers)}")))
    if limited:
        return _newest_of_each(query, Parameter(f"${next(numbers)}"))
    return str(query.orderby(*_AGE, order=Order.desc).limit(Parameter("$1")))


def _newest_of_each(orders: _Builder, storefronts: Parameter) -> str:
    """Return the SELECT of the ``$1`` newest of ``orders`` in an array of storefronts.

    A page of each, and of these one page: no index has the orders of several storefronts by their
    age, and PostgreSQL would go through everybody's.
    """
    ids = _unnest(Cast(storefronts, "BIGINT[]"))  # it takes arrays of any type
    each = PostgreSQLQuery.select(ids.as_("id")).as_("storefront")
    page = orders.where(_orders.storefront_id == each.id)
    page = page.orderby(*_AGE, order=Order.desc).limit(Parameter("$1"))
    pages = _Lateral(page, "page")
    query: _Builder = PostgreSQLQuery.from_(each).join(pages, JoinType.cross).cross()
    query = query.select(*(pages.field(name) for name in OrderRecord._fields))
    query = query.orderby(pages.created_at, pages.id, order=Order.desc)
    return str(query.limit(Parameter("$1")))


class _Lateral(Selectable):
    """A subquery that refers to what stands before it, which PyPika has no word for."""

    def __init__(self, query: _Builder, alias: str) -> None:
        super().__init__(alias)
        self._query = query

    def get_sql(self, **options: Any) -> str:
        """Return it as it stands in a join."""
        return f'LATERAL ({self._query}) "{self.alias}"'


@cache
def list_stuck(*, by_provider: bool, after_key: bool, limited: bool = False) -> str:
    """Return the SELECT of orders whose payment is open, and older than ``$2``, oldest first.

    ``$1`` is how many. With ``after_key``, ``$3`` and ``$4`` are the ``created_at`` and ``id`` of
    the order before. With ``by_provider``, the next parameter is the provider.
    """
    numbers = count(5 if after_key else 3)
    # The first two conditions are those of the index.
    query = _select_orders().where(_orders.payment_status.isin(OPEN))
    query = query.where(_orders.payment_provider.notnull())
    # An order is never younger than its last change: the index is read up to there.
    query = query.where(_orders.created_at < Parameter("$2"))
    query = query.where(_orders.updated_at < Parameter("$2"))
    if after_key:
        query = query.where(Tuple(*_AGE) > Tuple(Parameter("$3"), Parameter("$4")))
    if by_provider:
        query = query.where(_orders.payment_provider == Parameter(f"${next(numbers)}"))
    if limited:
        query = query.where(_is_of(_orders, next(numbers)))
    return str(query.orderby(*_AGE).limit(Parameter("$1")))


@cache
def get_event_by_key() -> str:
    """Return the SELECT of the event that the idempotency key ``$1`` was used for.

    What it returns is as durable as an update that PostgreSQL has acknowledged. With synchronous
    replication, an event can be seen before the standby has it: PostgreSQL shows a transaction
    whose wait for the standby was cut short, by a cancel or a crash. Answered as a replay, and lost
    in a fail-over, it would be a payment that was acknowledged and lost. So when there is an event,
    the statement writes to the log, too, and waits until the standby has come as far.
    """
    query = _select_events().where(_events.idempotency_key == Parameter("$1"))
    return str(query.where(_emit_message(True, "listings", "").isnotnull()))


@cache
def list_events(*, limited: bool = False) -> str:
    """Return the SELECT of ``$1`` events of the order ``$2``, with ids above ``$3``."""
    query = _select_events().where(_events.order_id == Parameter("$2"))
    query = query.where(_events.id > Parameter("$3"))
    if limited:
        query = query.where(_is_of(_events, 4))
    return str(query.orderby(_events.id).limit(Parameter("$1")))


@cache
def current_snapshot() -> str:
    """Return the SELECT of what is committed by now, as a ``pg_snapshot``, and of the last event.

    The last one by its ``transaction_id``; null, when there are no events.
    """
    last: _Builder = PostgreSQLQuery.from_(_events).select(_events.transaction_id)
    last = last.orderby(_events.transaction_id, order=Order.desc).limit(1)
    return str(PostgreSQLQuery.select(_current_snapshot(), last))


@cache
def events_between(*, order_ids: bool, storefront_ids: bool, limited: bool = False) -> str:
    """Return the SELECT of the events committed after one ``pg_snapshot``, up to another.

    ``$1`` is how many, ``$2`` and ``$3`` are the snapshots; with ids above ``$4`` only. The next
    parameters are arrays: of orders and of storefronts, or of either. An event has to be of one of
    them. Sorted by id, which for one order is the order in which they were committed.
    """
    transaction, since, upto = _events.transaction_id, Parameter("$2"), Parameter("$3")
    query = _select_events().where(_events.id > Parameter("$4"))
    # The range is what the index finds; the rest tells what of it was committed when.
    query = query.where(transaction >= _snapshot_xmin(since))
    query = query.where(transaction < _snapshot_xmax(upto))
    query = query.where(_visible_in(transaction, since).negate())
    query = query.where(_visible_in(transaction, upto))
    numbers = count(5)
    watched = EmptyCriterion()
    for column, is_given in (
        (_events.order_id, order_ids),
        (_events.storefront_id, storefront_ids),
    ):
        if is_given:
            watched |= column == _any_of(Parameter(f"${next(numbers)}"))
    query = query.where(watched)
    if limited:
        query = query.where(_is_of(_events, next(numbers)))
    return str(query.orderby(_events.id).limit(Parameter("$1")))


def _select_orders() -> _Builder:
    return PostgreSQLQuery.from_(_orders).select(*_columns(_orders, OrderRecord._fields))


def _select_events() -> _Builder:
    return PostgreSQLQuery.from_(_events).select(*_columns(_events, PaymentEvent._fields))


def _columns(table: Table, names: Iterable[str]) -> list[Field]:
    return [table[name] for name in names]


def _is_of(table: Table, number: int) -> Criterion:
    """Return whether a row belongs to one of the storefronts in the parameter of that number."""
    return table.storefront_id == _any_of(Parameter(f"${number}"))


def _differs(first: Term, second: Term) -> Criterion:
    """Return whether two values differ, where two nulls do not."""
    return BasicCriterion(_PostgreSQL.is_distinct_from, first, second)
