"""The SQL of positions in the history: what is committed now, and whether what was read still is.

Both statements have the same parameters, of a position: ``$1`` and ``$2``, the snapshots between
which the events of its mark were committed, and ``$3``, the last transaction of ``$2``, or 0.

They return ``Row``, and fail on a standby. Each event is a hash in it, of its id, transaction and
time: ids and transactions are assigned again when those of a lost history are free, and its time
tells them apart. The hashes are added by XOR, so that any number of events takes 8 bytes.
"""

from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

from pypika import Case, Field, Order, Parameter, PostgreSQLQuery, Table
from pypika.functions import Coalesce
from pypika.queries import AliasedQuery
from pypika.terms import Criterion, ExistsCriterion, NullValue, Term

from persistence import dialect as pg

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

_MOST_EVENTS: Final = 500  # that a mark is made of: the last ones by transaction and id

_taken = Table("order_payment_events")
_refused = Table("refused_payment_events")
_epochs = Table("payment_history_epochs")
_earlier = Table("payment_history_epochs").as_("earlier")
_epoch, _last = AliasedQuery("epoch"), AliasedQuery("last")
_EPOCH: Final = (
    "id",
    "identity",
    "system_identifier",
    "first_transaction_id",
    "last_event_id",
    "last_refused_event_id",
)
_control = pg.FunctionTable("pg_control_system", "control")

_NOW: Final = pg.pg_current_snapshot()


class Row(NamedTuple):
    """What PostgreSQL says of the history, and of a position in it."""

    snapshot: tuple[int, int, tuple[int, ...]]
    """The current ``pg_snapshot``."""
    last_transaction: int | None
    """The highest transaction of an event of this epoch, taken or refused; None without one."""
    ledger: int
    """A hash of the system identifier and of the epoch."""
    is_original: bool
    """Whether it is the first epoch, and the cluster the one in which it began."""
    mark: int | None
    """The hash of the events between the snapshots ``$1`` and ``$2``; None if there are none."""
    next_mark: int | None
    """The hash of the events after ``$2``; of ``durable`` alone."""


@cache
def visible() -> str:
    """Return the SELECT of ``Row``. What is visible may be lost in a fail-over."""
    return str(_row(NullValue()).select(_fails_on_a_standby()))


@cache
def durable() -> str:
    """Return the same SELECT, of what is on disk, and on the standbys that commits wait for.

    A transaction can be visible before: its wait was cut short, by a cancel, a lost connection or a
    crash; or its session does not wait. This statement writes to the WAL, after all that it sees,
    so that its own commit waits for that, too.
    """
    written = pg.pg_logical_emit_message(True, "listings", "")
    next_mark = _mark(Parameter("$2"), _NOW, _last.transaction_id)
    return str(_row(next_mark).select(_fails_on_a_standby(), written))


@cache
def last_transaction() -> str:
    """Return the SELECT of the highest transaction of an event of this epoch, null without one."""
    query: _Builder = PostgreSQLQuery.with_(current_epoch(*_EPOCH), "epoch")
    query = query.with_(_last_transaction(), "last").from_(_last)
    return str(query.select(_last.transaction_id))


def is_complete(since: Term, upto: Term, last: Term, events: Term) -> Term:
    """Return whether the server has what the mark ``events`` of a position stands for.

    The other values are those of ``visible``. The statement fails on a standby.
    """
    holds = Coalesce(_mark(since, upto, last), 0) == events
    return Case().when(pg.pg_is_in_recovery(), pg.pg_current_xact_id().isnull()).else_(holds)


def _fails_on_a_standby() -> Term:
    """Return a term that PostgreSQL refuses to evaluate on a standby, as read_only_sql_transaction.

    There, pg_current_snapshot() has no transaction in progress, so that one that commits out of
    order would be missed; and an asynchronous standby may show what is lost in a fail-over.
    """
    return Case().when(pg.pg_is_in_recovery(), pg.pg_current_xact_id())


def _row(next_mark: Term) -> _Builder:
    """Return the SELECT of ``Row``, with its last column."""
    since, upto, last = Parameter("$1"), Parameter("$2"), Parameter("$3")
    identity = pg.row(_control.system_identifier, _epoch.identity)
    is_original = _epoch.system_identifier == _control.system_identifier
    earlier = PostgreSQLQuery.from_(_earlier).select(_earlier.id).where(_earlier.id < _epoch.id)
    columns = {
        "snapshot": _NOW,
        "last_transaction": _last.transaction_id,
        "ledger": pg.hash_record_extended(identity, 0),
        "is_original": is_original & ExistsCriterion(earlier).negate(),
        "mark": _mark(since, upto, last),
        "next_mark": next_mark,
    }
    query: _Builder = PostgreSQLQuery.with_(current_epoch(*_EPOCH), "epoch")
    query = query.with_(_last_transaction(), "last")
    query = query.from_(_epoch).cross_join(_last).cross().cross_join(_control).cross()
    return query.select(*(columns[name].as_(name) for name in Row._fields))


def current_epoch(*columns: str) -> _Builder:
    """Return the SELECT of columns of the current epoch."""
    query: _Builder = PostgreSQLQuery.from_(_epochs).select(*(_epochs[name] for name in columns))
    return query.orderby(_epochs.id, order=Order.desc).limit(1)


def _last_transaction() -> _Builder:
    """Return the SELECT of the highest transaction of this epoch, null if there is none.

    Transactions of another cluster may be in the future of this one.
    """
    last = []
    for table, name in ((_taken, "last_event_id"), (_refused, "last_refused_event_id")):
        ended = PostgreSQLQuery.from_(_epoch).select(Field(name, table=_epoch))
        query: _Builder = PostgreSQLQuery.from_(table).select(table.transaction_id)
        query = query.where(table.transaction_id < pg.pg_snapshot_xmax(_NOW))
        query = query.where(table.id > ended)
        query = query.where(
            table.transaction_id
            >= PostgreSQLQuery.from_(_epoch).select(_epoch.first_transaction_id)
        )
        last.append(query.orderby(table.transaction_id, order=Order.desc).limit(1))
    query = PostgreSQLQuery
    return query.select(pg.greatest(*last).as_("transaction_id"))


def _mark(since: Term, upto: Term, last: Term) -> _Builder:
    """Return the SELECT of the hash of the events between two snapshots, null without one.

    Of ``since`` and ``upto``, whose last transaction is ``last``. Refused events are deleted when
    they are old: only that of ``last`` counts, if it is one.
    """
    transaction = _taken.transaction_id
    in_progress = PostgreSQLQuery.select(pg.pg_snapshot_xip(since))
    # Each of them is a range of the index: a transaction may be in progress for long.
    events = [
        _hashes(_taken, _taken.created_at, condition & pg.pg_visible_in_snapshot(transaction, upto))
        for condition in (
            (transaction >= pg.pg_snapshot_xmax(since)) & (transaction <= last),
            transaction == pg.any_(pg.array(in_progress)),
        )
    ]
    is_last = (_refused.transaction_id >= pg.pg_snapshot_xmax(since)) & (
        _refused.transaction_id == last
    )
    refused = _hashes(_refused, _refused.first_refused_at, is_last)
    all_of_them = events[0].union_all(events[1]).union_all(refused).as_("events")
    query: _Builder = PostgreSQLQuery.from_(all_of_them)
    return query.select(pg.bit_xor(all_of_them.hash))


def _hashes(table: Table, time: Term, condition: Criterion) -> _Builder:
    row = pg.row(table.id, table.transaction_id, time)
    query: _Builder = PostgreSQLQuery.from_(table).where(condition)
    query = query.select(pg.hash_record_extended(row, 0).as_("hash"))
    # Also by id: of a transaction with more events, these are the same ones by any plan. The index
    # sorts by transaction, and PostgreSQL the events of the last one, some ms for ten thousand.
    for column in (table.transaction_id, table.id):
        query = query.orderby(column, order=Order.desc)
    return query.limit(_MOST_EVENTS)
