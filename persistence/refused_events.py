"""The events that were refused: ``refused_payment_events``, where nothing is lost."""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

from pypika import Parameter, PostgreSQLQuery, Table
from pypika.functions import Count
from pypika.terms import ExistsCriterion

from persistence import dialect as pg
from persistence.database import Database
from persistence.decision import Reason, state_after
from persistence.errors import PersistenceError, RefusalNotRecorded, UniqueViolation
from persistence.models import PAYMENT_COLUMNS, Order, Origin, PaymentUpdate
from persistence.payment_states import SETTLED, Meaning, PaymentState, normalized

# Any, because PyPika types its builders as those of no dialect.
_Builder: TypeAlias = Any

_refused = Table("refused_payment_events")
_others = Table("refused_payment_events").as_("others")
_events = Table("order_payment_events")

MAX_ROWS: Final = 1_000
"""Events of one order that have a row each. Further ones are counted by their reason alone."""

_OF_MONEY: Final = (Reason.DUPLICATE, Reason.CURRENCY_MISMATCH)

# Equal events have these in common: not the key, time or etag, so that what a poller sends again
# and again is one row; nor the reason of an override.
_DISTINGUISHED_BY: Final = (
    "payment_session_id",
    "payment_intent_id",
    "payment_transaction_id",
    "captured_amount",
    "refunded_amount",
    "currency",
)
# In any spelling.
_WORDS: Final = ("payment_provider", "payment_status")

_REQUESTED: Final = (
    *PAYMENT_COLUMNS,
    "payment_event_time",
    "captured_amount",
    "refunded_amount",
    "currency",
    "override_reason",
)
_OF_ORDER: Final = (*PAYMENT_COLUMNS, "payment_state", "payment_event_time")
_COLUMNS: Final = (
    "order_id",
    "storefront_id",
    "reason",
    "written",
    "tells_of_money",
    "digest",
    "requested_state",
    "request_id",
    "caller",
    *_REQUESTED,
    *(f"order_{name}" for name in _OF_ORDER),
)


class Refusal(NamedTuple):
    """An event that is refused, and why."""

    reason: Reason
    order_id: int
    order: Order | None
    """As it was judged; None if there is none with ``order_id``."""
    update: PaymentUpdate
    meaning: Meaning | None
    """What the status of the update means; None without one."""

    @property
    def state(self) -> PaymentState | None:
        """The state to which the update would lead; None without a status."""
        if self.meaning is None or self.order is None:
            return self.meaning and self.meaning.state
        return state_after(self.order, self.meaning)

    @property
    def tells_of_money(self) -> bool:
        """Whether the event may tell of money that no order shows.

        What the word means counts, not the state: "returned" leads an open order to FAILED, and
        money has moved.
        """
        is_settled = self.meaning is not None and self.meaning.state in SETTLED
        return is_settled or self.reason in _OF_MONEY


class RefusedEvents:
    """Records refused events, and looks them up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, refusal: Refusal, origin: Origin, *, written: bool = False) -> None:
        """Record ``refusal``, or count it if an equal one is on record.

        ``written`` is whether the update was made all the same. Raises RefusalNotRecorded.
        """
        order, state = refusal.order, refusal.state
        requested = [getattr(refusal.update, name) for name in _REQUESTED]
        digest = refused_digest(refusal, written=written)
        try:
            if not refusal.tells_of_money and await self._is_full(refusal.order_id, digest):
                requested, state = [None] * len(_REQUESTED), None
                digest = _digest_of_further(refusal, written=written)
            await self._insert(
                refusal.order_id,
                order and order.storefront_id,
                refusal.reason.value,
                written,
                refusal.tells_of_money,
                digest,
                state,
                origin.request_id,
                origin.caller,
                *requested,
                *(order and getattr(order, name) for name in _OF_ORDER),
            )
        except PersistenceError as error:
            raise RefusalNotRecorded(refusal.reason.value) from error

    async def _insert(self, *values: object) -> None:
        """Insert the row, or count the equal one."""
        try:
            await self._database.fetchrow(_record(), *values)
        except UniqueViolation:
            # While the index of digests is rebuilt (REINDEX CONCURRENTLY), ON CONFLICT does not
            # look at the new index, which may be the first to have the equal row. It is there now.
            await self._database.fetchrow(_record(), *values)

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


def refused_digest(refusal: Refusal, *, written: bool) -> str:
    """Return what is equal for equal events of an order."""
    reason, update = refusal.reason.value, refusal.update
    if refusal.order is None:
        # The key of another order, with an id that no order has. A caller with a fault may send any
        # number of such ids, and of values: there are two rows at most for a key that was used.
        return _hash("no order", reason, update.payment_idempotency_key, refusal.tells_of_money)
    words = [getattr(update, name) for name in _WORDS]
    others = [getattr(update, name) for name in _DISTINGUISHED_BY]
    return _hash(refusal.order_id, reason, written, *map(_as_compared, words), *others)


def _digest_of_further(refusal: Refusal, *, written: bool) -> str:
    """Return what is equal for all events of an order that have no row of their own."""
    return _hash(refusal.order_id, refusal.reason.value, written, "further")


def _as_compared(word: str | None) -> str | None:
    return None if word is None else normalized(word)


def _hash(*parts: object) -> str:
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
    # What was written all the same is in the history.
    refused = refused.where(_refused.order_id == order_id).where(_refused.written.negate())
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
