"""The SQL of orders and of their history, assembled by PyPika; lists: ``list_queries``.

Values are parameters, and never part of the text. What runs once or more for each RPC that reads or
writes one order has positional parameters, ``$1``, for asyncpg; what lists has named ones,
``:limit``, for ``databases``. See ``Database.fetch`` and ``Database.fetch_all``.

With ``scoped``, a query has the storefronts of the caller as its last parameter, or as
``:storefronts``, and finds or changes nothing that belongs to another storefront. A null array for
all storefronts would do without two texts for each query, and slow down each caller who has all.

Each text is cached: PyPika takes longer to write a statement than PostgreSQL to run it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeAlias

from pypika import NamedParameter, Order, Parameter, PostgreSQLQuery, Table
from pypika.enums import JoinType
from pypika.functions import Cast
from pypika.terms import Bracket, Criterion, Term

from persistence import dialect as pg
from persistence.models import Order as OrderRecord
from persistence.models import OrderKey, PaymentEvent, RefusedEvent, Storefronts
from persistence.position_queries import current_epoch, is_complete

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

_orders = Table("orders")
_events = Table("order_payment_events")
_refused = Table("refused_payment_events")

_ORDER: Final = [_orders[name] for name in OrderRecord._fields]
_EVENT: Final = [_events[name] for name in PaymentEvent._fields]


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
def get_order(*, scoped: bool = False) -> str:
    """Return the SELECT of the order with the id ``$1``."""
    query = _select_orders().where(_orders.id == Parameter("$1"))
    return str(query.where(_in_scope(_orders, Parameter("$2"))) if scoped else query)


def page_of_each_storefront(page: Callable[[Term], _Builder]) -> _Builder:
    """Return a query of the rows of ``page``, as "page", for each of the array ``:storefronts``.

    ``page`` returns the SELECT of a page of a storefront, given its id. No index has the rows of
    several storefronts by their age, and PostgreSQL would read those of all storefronts.
    """
    ids = pg.unnest(Cast(NamedParameter("storefronts"), "BIGINT[]"))  # unnest takes any type
    each = PostgreSQLQuery.select(ids.as_("id")).as_("storefront")
    pages = pg.Lateral(page(each.id), "page")
    return PostgreSQLQuery.from_(each).join(pages, JoinType.cross).cross()


@cache
def get_events_by_key() -> str:
    """Return the SELECT of the event that the idempotency key ``$1`` was first used for.

    And of that of a further use with the request's digest ``$2``.

    The rows are as durable as an update that PostgreSQL has acknowledged. With synchronous
    replication, a transaction can be visible before the standby has it: when its wait for the
    standby was cut short by a cancel or a crash. Answered as a replay, and lost in a failover, it
    would be a payment that was acknowledged and lost. So when there is an event, the statement
    writes to the WAL as well, and waits until the standby has received it.
    """
    key, digest = Parameter("$1"), Cast(Cast(Parameter("$2"), "TEXT"), "UUID")
    is_further = (_events.further_idempotency_key == key) & (_events.request_digest == digest)
    query = _select_events().where((_events.idempotency_key == key) | Bracket(is_further))
    return str(query.where(pg.pg_logical_emit_message(True, "listings", "").isnotnull()))


@cache
def get_order_id_by_key() -> str:
    """Return the SELECT of the id of the order with the present idempotency key ``$1``."""
    query: _Builder = PostgreSQLQuery.from_(_orders).select(_orders.id)
    return str(query.where(_orders.payment_idempotency_key == Parameter("$1")))


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
def list_latest_events(*, scoped: bool = False) -> str:
    """Return the SELECT of the ``:limit`` newest events of the order ``:order_id``, newest first.

    Sorted by id.
    """
    query = _select_events().where(_events.order_id == NamedParameter("order_id"))
    if scoped:
        query = query.where(_in_scope(_events, NamedParameter("storefronts")))
    return str(query.orderby(_events.id, order=Order.desc).limit(NamedParameter("limit")))


@cache
def events_between(
    *, refused: bool = False, order_ids: bool, storefront_ids: bool, scoped: bool = False
) -> str:
    """Return the SELECT of ``:limit`` events that were committed between two snapshots.

    They are visible in the ``pg_snapshot`` ``:upto`` and not in ``:since``, have ids above
    ``:after_id``, and are of the current epoch: the transactions of earlier ones may be those of
    another cluster, and tell nothing. They belong to one of the orders in the array ``:order_ids``,
    or to one of the storefronts in ``:storefront_ids``; where neither is given, to any. Sorted by
    id, which for one order is the order in which they were committed.

    With ``refused``, they are refused events; each was committed when it was first refused.

    The statement may run on another server than the one that ``:upto`` is of, as where the pool has
    connections to an old primary. So each row begins with ``is_complete``: whether the server has
    what the mark of ``:upto`` stands for, ``:mark``, with the last transaction ``:last``, and the
    snapshot ``:mark_since`` before. Without events, it is one row, with nulls. See
    ``position_queries.is_complete``.
    """
    table = _refused if refused else _events
    fields = RefusedEvent._fields if refused else PaymentEvent._fields
    transaction = table.transaction_id
    since, upto = NamedParameter("since"), NamedParameter("upto")
    query: _Builder = PostgreSQLQuery.from_(table).select(*(table[name] for name in fields))
    query = query.where(table.id > NamedParameter("after_id"))
    query = query.where(_is_of_current_epoch(table, refused=refused))
    # The first two conditions are the range of the index, the others select within it.
    query = query.where(transaction >= pg.pg_snapshot_xmin(since))
    query = query.where(transaction < pg.pg_snapshot_xmax(upto))
    query = query.where(pg.pg_visible_in_snapshot(transaction, since).negate())
    query = query.where(pg.pg_visible_in_snapshot(transaction, upto))
    watched = []
    if order_ids:
        watched.append(table.order_id == pg.any_(NamedParameter("order_ids")))
    if storefront_ids:
        watched.append(table.storefront_id == pg.any_(NamedParameter("storefront_ids")))
    if watched:
        query = query.where(Criterion.any(watched))
    if scoped:
        query = query.where(_in_scope(table, NamedParameter("storefronts")))
    page = query.orderby(table.id).limit(NamedParameter("limit")).as_("page")
    mark = (NamedParameter(name) for name in ("mark_since", "upto", "last", "mark"))
    proof = PostgreSQLQuery.select(is_complete(*mark).as_("is_complete")).as_("proof")
    query = PostgreSQLQuery.from_(proof).left_join(page).on(proof.is_complete)
    columns = (page[name] for name in fields)
    return str(query.select(proof.is_complete, *columns).orderby(page.id))


def _is_of_current_epoch(table: Table, *, refused: bool = False) -> Criterion:
    """Return whether an event is; both the ids and the transactions of earlier ones end before."""
    end = current_epoch("last_refused_event_id" if refused else "last_event_id")
    start = current_epoch("first_transaction_id")
    return Criterion.all([table.id > end, table.transaction_id >= start])


@cache
def latest_events(*, all_orders: bool) -> str:
    """Return the SELECT of the ``:limit`` newest events of the current epoch, newest first.

    Of all orders, or of the orders in ``:order_ids`` and the storefronts in ``:storefront_ids``;
    those visible in the ``pg_snapshot`` ``:upto``. By transaction, since ids alone have no index.
    """
    transaction, upto = _events.transaction_id, NamedParameter("upto")
    query = _select_events().where(_is_of_current_epoch(_events))
    query = query.where(transaction < pg.pg_snapshot_xmax(upto))
    query = query.where(pg.pg_visible_in_snapshot(transaction, upto))
    if not all_orders:
        of_order = _events.order_id == pg.any_(NamedParameter("order_ids"))
        query = query.where(
            of_order | (_events.storefront_id == pg.any_(NamedParameter("storefront_ids")))
        )
    for column in (_events.transaction_id, _events.id):
        query = query.orderby(column, order=Order.desc)
    return str(query.limit(NamedParameter("limit")))


def _select_orders() -> _Builder:
    return PostgreSQLQuery.from_(_orders).select(*_ORDER)


def _select_events() -> _Builder:
    return PostgreSQLQuery.from_(_events).select(*_EVENT)


def _in_scope(table: Table, storefronts: Parameter) -> Criterion:
    """Return whether a row belongs to one of ``storefronts``, an array."""
    return table.storefront_id == pg.any_(storefronts)
