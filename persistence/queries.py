"""The SQL of orders and of their history, assembled by PyPika.

Values are parameters, and never part of the text. What runs once or more for each RPC that reads or
writes one order has positional parameters, ``$1``, for asyncpg; what lists has named ones,
``:limit``, for ``databases``. See ``Database.fetch`` and ``Database.fetch_all``.

With ``scoped``, a query has the storefronts of the caller as its last parameter, or as
``:storefronts``, and finds or changes nothing that belongs to another storefront. A null array for
all storefronts would do without two texts for each query, and slow down each caller who has all.

Each text is cached: PyPika takes longer to write a statement than PostgreSQL to run it.
"""

from functools import cache
from itertools import count
from typing import Any, Final, TypeAlias

from pypika import NamedParameter, Order, Parameter, PostgreSQLQuery, Table, Tuple
from pypika.enums import JoinType
from pypika.functions import Cast
from pypika.terms import Criterion, ExistsCriterion, Interval, Term

from persistence import dialect as pg
from persistence.models import PAYMENT_COLUMNS, OrderKey, PaymentEvent, Storefronts
from persistence.models import Order as OrderRecord
from persistence.statuses import OPEN

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

_orders = Table("orders")
_events = Table("order_payment_events")
_others = Table("order_payment_events").as_("others")

_ORDER: Final = [_orders[name] for name in OrderRecord._fields]
_EVENT: Final = [_events[name] for name in PaymentEvent._fields]
_AGE: Final = (_orders.created_at, _orders.id)
_AFTER: Final = Tuple(NamedParameter("after_created_at"), NamedParameter("after_id"))

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
"""What orders can be listed by: the name of each parameter, and its condition."""

LOCK_TIMEOUT: Final = "10ms"
"""How long an update with a ``lock_timeout`` waits for a lock."""


def scope_args(storefronts: Storefronts) -> tuple[list[int], ...]:
    """Return the last positional value of a ``scoped`` query, or none for all storefronts."""
    return () if storefronts is None else (list(storefronts),)


def scope_values(storefronts: Storefronts) -> dict[str, object]:
    """Return the last named value of a ``scoped`` query, or none for all storefronts."""
    return {} if storefronts is None else {"storefronts": list(storefronts)}


def after_values(key: OrderKey | None) -> dict[str, object]:
    """Return the named values of a query with ``after_key``, or none without a key."""
    return {} if key is None else {"after_created_at": key.created_at, "after_id": key.id}


@cache
def update_payment(
    columns: tuple[str, ...], *, scoped: bool = False, lock_timeout: bool = False
) -> str:
    """Return ``UPDATE orders SET … WHERE id = $1 … RETURNING …`` for these payment columns.

    ``$2`` is the request id and ``$3`` the caller, for the history. From ``$4`` on follow the
    values of ``columns``, in their order. When ``payment_status`` is one of them, the next
    parameter is an array of the statuses that may not become the new one. The row has the fields
    of ``Order``. No row is returned, and nothing is written, when there is no such order, when its
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
    # clock_timestamp(), because now() is the start of the transaction: after a wait for a row lock,
    # it would write an earlier time over a later one. greatest(), because clocks step back.
    query = query.set(
        _orders.updated_at,
        pg.greatest(pg.clock_timestamp(), _orders.updated_at + Interval(microseconds=1)),
    )
    # PostgreSQL checks these conditions again for a row that it has waited for, so that no other
    # update comes between the check and the write.
    query = query.where(_orders.id == Parameter("$1"))
    if "payment_status" in values:
        disallowed = pg.all_(Parameter(f"${next(numbers)}"))
        query = query.where(_orders.payment_status != disallowed)
    if key := values.get("payment_idempotency_key"):
        query = query.where(pg.is_distinct_from(_orders.payment_idempotency_key, key))
        query = query.where(_set_local("listings.request_fields", ",".join(columns)))
    if scoped:
        query = query.where(_in_scope(_orders, Parameter(f"${next(numbers)}")))
    query = query.where(_set_local("listings.request_id", Parameter("$2")))
    query = query.where(_set_local("listings.caller", Parameter("$3")))
    if lock_timeout:
        query = query.where(_set_local("lock_timeout", LOCK_TIMEOUT))
    return str(query.returning(*_ORDER))


def _set_local(setting: str, value: Term | str) -> Criterion:
    """Return a condition that is always true, and sets ``setting`` as ``SET LOCAL`` does.

    The trigger that writes the history reads the settings in ``listings``. A statement of its own
    would take a second round trip.
    """
    return pg.set_config(setting, value, True).isnotnull()


@cache
def get_order(*, scoped: bool = False) -> str:
    """Return the SELECT of the order with the id ``$1``."""
    query = _select_orders().where(_orders.id == Parameter("$1"))
    return str(query.where(_in_scope(_orders, Parameter("$2"))) if scoped else query)


@cache
def find_order(reference: str, *, by_provider: bool, scoped: bool = False) -> str:
    """Return the SELECT of up to two orders that have ever had ``$1`` as ``reference``.

    ``reference`` is one of ``REFERENCES``. With ``by_provider``, only orders that have ever had
    ``$2`` as their provider.
    """
    numbers = count(2)
    if reference == "payment_idempotency_key":
        introduced = _events.idempotency_key == Parameter("$1")
    else:
        before, after = _events[f"{reference}_before"], _events[f"{reference}_after"]
        # The second condition is that of the index.
        introduced = (after == Parameter("$1")) & pg.is_distinct_from(after, before)
    query: _Builder = PostgreSQLQuery.from_(_events).join(_orders)
    query = query.on(_orders.id == _events.order_id).where(introduced)
    if by_provider:
        of_provider = (
            PostgreSQLQuery.from_(_others)
            .select(_others.id)
            .where(_others.order_id == _orders.id)
            .where(_others.payment_provider_after == Parameter(f"${next(numbers)}"))
        )
        query = query.where(ExistsCriterion(of_provider))
    if scoped:
        query = query.where(_in_scope(_orders, Parameter(f"${next(numbers)}")))
    return str(query.select(*_ORDER).distinct().orderby(_orders.id).limit(2))


@cache
def list_orders(filters: tuple[str, ...], *, after_key: bool, scoped: bool = False) -> str:
    """Return the SELECT of ``:limit`` orders, newest first, with the parameters of ``filters``.

    ``filters`` are some of ``FILTERS``. With ``after_key``, the list continues after the order with
    ``:after_created_at`` and ``:after_id``.
    """
    query = _select_orders()
    if after_key:
        # A comparison of rows, which is one range of an index. It comes first, because PostgreSQL
        # starts to read at the first of two upper limits: at `created_before`, it would read all
        # pages before this one.
        query = query.where(Tuple(*_AGE) < _AFTER)
    for name in filters:
        query = query.where(FILTERS[name](NamedParameter(name)))
    if scoped:
        return _newest_of_each_storefront(query)
    return str(query.orderby(*_AGE, order=Order.desc).limit(NamedParameter("limit")))


def _newest_of_each_storefront(orders: _Builder) -> str:
    """Return the SELECT of the newest of ``orders`` in the array ``:storefronts``.

    Reads a page of each storefront, and merges them into one: no index has the orders of several
    storefronts by their age, and PostgreSQL would read those of all storefronts.
    """
    ids = pg.unnest(Cast(NamedParameter("storefronts"), "BIGINT[]"))  # unnest takes any type
    each = PostgreSQLQuery.select(ids.as_("id")).as_("storefront")
    page = orders.where(_orders.storefront_id == each.id)
    page = page.orderby(*_AGE, order=Order.desc).limit(NamedParameter("limit"))
    pages = pg.Lateral(page, "page")
    query: _Builder = PostgreSQLQuery.from_(each).join(pages, JoinType.cross).cross()
    query = query.select(*(pages.field(name) for name in OrderRecord._fields))
    query = query.orderby(pages.created_at, pages.id, order=Order.desc)
    return str(query.limit(NamedParameter("limit")))


@cache
def list_stuck(*, by_provider: bool, after_key: bool, scoped: bool = False) -> str:
    """Return the SELECT of ``:limit`` orders whose payment is open, oldest first.

    Only those that have not changed since ``:unchanged_since``. With ``after_key``, the list
    continues after the order with ``:after_created_at`` and ``:after_id``. With ``by_provider``,
    only those of ``:payment_provider``.
    """
    unchanged_since = NamedParameter("unchanged_since")
    # The first two conditions are those of the index.
    query = _select_orders().where(_orders.payment_status.isin(OPEN))
    query = query.where(_orders.payment_provider.notnull())
    # An order is as old as its last change or older: this bounds the range of the index.
    query = query.where(_orders.created_at < unchanged_since)
    query = query.where(_orders.updated_at < unchanged_since)
    if after_key:
        query = query.where(Tuple(*_AGE) > _AFTER)
    if by_provider:
        query = query.where(_orders.payment_provider == NamedParameter("payment_provider"))
    if scoped:
        query = query.where(_in_scope(_orders, NamedParameter("storefronts")))
    return str(query.orderby(*_AGE).limit(NamedParameter("limit")))


@cache
def get_event_by_key() -> str:
    """Return the SELECT of the event that the idempotency key ``$1`` was used for.

    The row is as durable as an update that PostgreSQL has acknowledged. With synchronous
    replication, a transaction can be visible before the standby has it: when its wait for the
    standby was cut short by a cancel or a crash. Answered as a replay, and lost in a failover, it
    would be a payment that was acknowledged and lost. So when there is an event, the statement
    writes to the WAL as well, and waits until the standby has received it.
    """
    query = _select_events().where(_events.idempotency_key == Parameter("$1"))
    return str(query.where(pg.pg_logical_emit_message(True, "listings", "").isnotnull()))


@cache
def list_events(*, scoped: bool = False) -> str:
    """Return the SELECT of ``:limit`` events of the order ``:order_id``, ids above ``:after_id``.

    Sorted by id.
    """
    query = _select_events().where(_events.order_id == NamedParameter("order_id"))
    query = query.where(_events.id > NamedParameter("after_id"))
    if scoped:
        query = query.where(_in_scope(_events, NamedParameter("storefronts")))
    return str(query.orderby(_events.id).limit(NamedParameter("limit")))


@cache
def current_snapshot() -> str:
    """Return the SELECT of the current ``pg_snapshot``, as ``snapshot``, and ``last_transaction``.

    The latter is the highest ``transaction_id`` of an event, or null when there are no events.
    """
    last: _Builder = (
        PostgreSQLQuery.from_(_events)
        .select(_events.transaction_id)
        .orderby(_events.transaction_id, order=Order.desc)
        .limit(1)
    )
    snapshot = pg.pg_current_snapshot().as_("snapshot")
    return str(PostgreSQLQuery.select(snapshot, last.as_("last_transaction")))


@cache
def events_between(*, order_ids: bool, storefront_ids: bool, scoped: bool = False) -> str:
    """Return the SELECT of ``:limit`` events that were committed between two snapshots.

    They are visible in the ``pg_snapshot`` ``:upto`` and not in ``:since``, and have ids above
    ``:after_id``. They belong to one of the orders in the array ``:order_ids``, or to one of the
    storefronts in ``:storefront_ids``; at least one of the two is given. Sorted by id, which for
    one order is the order in which they were committed.
    """
    transaction = _events.transaction_id
    since, upto = NamedParameter("since"), NamedParameter("upto")
    query = _select_events().where(_events.id > NamedParameter("after_id"))
    # The first two conditions are the range of the index, the others select within it.
    query = query.where(transaction >= pg.pg_snapshot_xmin(since))
    query = query.where(transaction < pg.pg_snapshot_xmax(upto))
    query = query.where(pg.pg_visible_in_snapshot(transaction, since).negate())
    query = query.where(pg.pg_visible_in_snapshot(transaction, upto))
    watched = []
    if order_ids:
        watched.append(_events.order_id == pg.any_(NamedParameter("order_ids")))
    if storefront_ids:
        watched.append(_events.storefront_id == pg.any_(NamedParameter("storefront_ids")))
    query = query.where(Criterion.any(watched))
    if scoped:
        query = query.where(_in_scope(_events, NamedParameter("storefronts")))
    return str(query.orderby(_events.id).limit(NamedParameter("limit")))


def _select_orders() -> _Builder:
    return PostgreSQLQuery.from_(_orders).select(*_ORDER)


def _select_events() -> _Builder:
    return PostgreSQLQuery.from_(_events).select(*_EVENT)


def _in_scope(table: Table, storefronts: Parameter) -> Criterion:
    """Return whether a row belongs to one of ``storefronts``, an array."""
    return table.storefront_id == pg.any_(storefronts)
