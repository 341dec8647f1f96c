"""The events that were refused: ``refused_payment_events``, where nothing is lost."""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, TypeAlias

from pypika import Parameter, PostgreSQLQuery, Table
from pypika.functions import Count
from pypika.terms import ExistsCriterion

from persistence import dialect as pg
from persistence.database import Database
from persistence.decision import Reason
from persistence.errors import PersistenceError, RefusalNotRecorded
from persistence.models import PAYMENT_COLUMNS, Order, Origin, PaymentUpdate
from persistence.payment_states import SETTLED, PaymentState

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

_refused = Table("refused_payment_events")
_others = Table("refused_payment_events").as_("others")
_events = Table("order_payment_events")

MAX_ROWS: Final = 1_000
"""Events of one order that have a row each. Further ones are counted by their reason alone."""

# These have a row each, however many there are: they may tell of money that no order shows.
MONEY: Final = (Reason.DUPLICATE, Reason.CURRENCY_MISMATCH)

# Equal events have these in common: not the key, time or etag, so that what a poller sends again
# and again is one row.
_DISTINGUISHED_BY: Final = (
    "payment_provider",
    "payment_session_id",
    "payment_intent_id",
    "payment_transaction_id",
    "payment_status",
    "captured_amount",
    "refunded_amount",
    "currency",
)

_REQUESTED: Final = (
    *PAYMENT_COLUMNS,
    "payment_event_time",
    "captured_amount",
    "refunded_amount",
    "currency",
)
_OF_ORDER: Final = (*PAYMENT_COLUMNS, "payment_state", "payment_event_time")
_COLUMNS: Final = (
    "order_id",
    "storefront_id",
    "reason",
    "written",
    "digest",
    "requested_state",
    "request_id",
    "caller",
    *_REQUESTED,
    *(f"order_{name}" for name in _OF_ORDER),
)


class RefusedEvents:
    """Records refused events, and looks them up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(  # noqa: PLR0913, PLR0917 - what a record has
        self,
        order_id: int,
        order: Order | None,
        update: PaymentUpdate,
        state: PaymentState | None,
        reason: Reason,
        origin: Origin,
        *,
        written: bool = False,
    ) -> None:
        """Record that ``order`` has refused ``update``, or count it if it is on record.

        ``order`` is None if there is none with ``order_id``. ``state`` is what the status of the
        update means, ``written`` whether the update was made all the same. Raises
        RefusalNotRecorded.
        """
        is_money = reason in MONEY or state in SETTLED
        requested = [getattr(update, name) for name in _REQUESTED]
        digest = refused_digest(order_id, reason, update, written=written)
        try:
            if not is_money and await self._is_full(order_id, digest):
                requested, state = [None] * len(_REQUESTED), None
                digest = refused_digest(order_id, reason, None, written=written)
            await self._database.fetchrow(
                _record(),
                order_id,
                order and order.storefront_id,
                reason.value,
                written,
                digest,
                state,
                origin.request_id,
                origin.caller,
                *requested,
                *(order and getattr(order, name) for name in _OF_ORDER),
            )
        except PersistenceError as error:
            raise RefusalNotRecorded(reason.value) from error

    async def is_unseen(self, order_id: int, intent: str) -> bool:
        """Return whether ``intent`` may be that of a follow-up to the order's payment.

        It may unless the order has had it, or an event with it was refused as one of another
        attempt; and unless a second payment is on record, to which it may belong as well.
        """
        row = await self._database.fetchrow(_is_unseen(), order_id, intent)
        assert row is not None  # noqa: S101 - it has no WHERE
        return bool(row[0])

    async def _is_full(self, order_id: int, digest: str) -> bool:
        """Return whether the order has all of its rows, and none with this digest."""
        row = await self._database.fetchrow(_is_full(), order_id, digest)
        assert row is not None  # noqa: S101 - it is an aggregate
        return bool(row[0])


def refused_digest(
    order_id: int, reason: Reason, update: PaymentUpdate | None, *, written: bool
) -> str:
    """Return what is equal for equal events; without an update, for all that are only counted."""
    parts: list[object] = [order_id, reason.value, written]
    parts += ["further"] if update is None else [getattr(update, n) for n in _DISTINGUISHED_BY]
    text = "\0".join("" if part is None else f"={part}" for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@cache
def _record() -> str:
    """Return the INSERT of ``_COLUMNS``, which counts an equal row instead, if there is one."""
    query: _Builder = PostgreSQLQuery.into(_refused).columns(*_COLUMNS)
    query = query.insert(*(Parameter(f"${n}") for n in range(1, len(_COLUMNS) + 1)))
    query = query.on_conflict(_refused.digest)
    query = query.do_update(_refused.times, _refused.times + 1)
    query = query.do_update(_refused.last_refused_at, pg.clock_timestamp())
    return str(query.returning(_refused.id))


@cache
def _is_full() -> str:
    order_id, digest = Parameter("$1"), Parameter("$2")
    rows = PostgreSQLQuery.from_(_others).select(_others.id).where(_others.order_id == order_id)
    equal = PostgreSQLQuery.from_(_refused).select(_refused.id).where(_refused.digest == digest)
    some = rows.limit(MAX_ROWS).as_("some")
    is_full = (Count("*") >= MAX_ROWS) & ExistsCriterion(equal).negate()
    return str(PostgreSQLQuery.from_(some).select(is_full))


@cache
def _is_unseen() -> str:
    order_id, intent = Parameter("$1"), Parameter("$2")
    reasons = [Reason.ATTEMPT_NOT_CURRENT.value, Reason.DUPLICATE.value]
    had: _Builder = PostgreSQLQuery.from_(_events).select(_events.id)
    had = had.where(_events.order_id == order_id)
    refused: _Builder = PostgreSQLQuery.from_(_refused).select(_refused.id)
    refused = refused.where(_refused.order_id == order_id)
    duplicates = refused.where(_refused.reason == Reason.DUPLICATE.value).where(
        _refused.payment_intent_id.isnull()
        | ExistsCriterion(
            had.where(_events.payment_intent_id_after == _refused.payment_intent_id)
        ).negate()
    )
    seen: Sequence[_Builder] = (
        had.where(_events.payment_intent_id_after == intent),
        refused.where(_refused.payment_intent_id == intent).where(_refused.reason.isin(reasons)),
        duplicates,
    )
    query: _Builder = PostgreSQLQuery
    return str(
        query.select(
            ~(ExistsCriterion(seen[0]) | ExistsCriterion(seen[1]) | ExistsCriterion(seen[2]))
        )
    )
