"""Updates of payments: written in one statement, or resolved when that has written nothing."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, Final, NamedTuple

from persistence import decision, queries
from persistence.batcher import BatchedStatement, Batcher
from persistence.database import Database
from persistence.decision import Attempt, Reason
from persistence.errors import (
    EtagMismatch,
    IdempotencyKeyReused,
    OrderNotFound,
    PaymentEventRefused,
    RefusalNotRecorded,
    TransactionConflict,
    UniqueViolation,
)
from persistence.models import (
    PAYMENT_COLUMNS,
    Order,
    Origin,
    PaymentEvent,
    PaymentUpdate,
    Storefronts,
    Update,
    version_of,
)
from persistence.payment_states import Meaning, PaymentState, Reversal
from persistence.refused_events import RefusedEvents
from persistence.status_words import StatusWords
from persistence.update_statement import Recorded, Rules, Second, arguments, statement
from persistence.update_terms import Shape

# Unique for idempotency keys: an order's present key, and the uses of each key in the history.
_KEY_INDEXES: Final = (
    "idx_orders_idempotency_key",
    "idx_order_payment_events_idempotency_key",
    "idx_order_payment_events_further_key",
)

# The second try is part of the usual way. There are more where the reason for which nothing was
# written is gone by the time it is looked for.
_MAX_TRIES: Final = 8

# What the history keeps of a request as it came.
_DETAILS: Final = (
    "payment_event_time",
    "captured_amount",
    "refunded_amount",
    "currency",
    "override_reason",
)

_TEXTS: Final = len(PAYMENT_COLUMNS)
"""How many of the fields of a ``PaymentUpdate`` come first: by position, they are found faster."""

# What the same request has in common with its repetition.
_IDENTITY: Final = tuple(
    name for name in PaymentUpdate._fields if name not in ("etag", "override_reason")
)


_NOTHING_RICH: Final = PaymentUpdate()[_TEXTS:]


class Guard(Enum):
    """What becomes of an update that the rules of payments refuse."""

    ON = "on"
    """It is refused."""
    SHADOW = "shadow"
    """It is written, and recorded as one that would be refused."""
    OFF = "off"
    """It is written."""


@dataclass(frozen=True)
class _Request:
    """An update, and what follows from it alone."""

    order_id: int
    update: PaymentUpdate
    meaning: Meaning | None
    origin: Origin
    storefronts: Storefronts
    columns: tuple[str, ...]
    digest: str | None


class _Try(NamedTuple):
    """How a request is written."""

    guarded: bool = True
    version: int | None = None
    """The ``payment_version`` that the order must have; None for any."""
    is_second: bool = False
    is_key_used: bool = False
    """Whether a unique index has the key."""
    is_further_use: bool = False
    """Whether an earlier event of the order has the key, and is another request."""
    would_be_refused: PaymentEventRefused | None = None


class _KeyUsed(Exception):
    """A unique index has the key of the request."""


class _Known(NamedTuple):
    """What follows from the meaning of a status alone, for the statement."""

    refusals: bytes
    targets: PaymentState | bytes | None
    is_fixed: bool
    is_reversal: bool


@cache
def _known(meaning: Meaning | None) -> _Known:
    fixed = None if meaning is None else decision.fixed_state(meaning)
    return _Known(
        decision.refusals(meaning),
        None if meaning is None else fixed or decision.targets(meaning),
        fixed is not None,
        meaning is not None and meaning.reverses is not None,
    )


class PaymentUpdates:
    """Writes updates of payments, by the rules of ``persistence.decision``."""

    def __init__(
        self,
        database: Database,
        get_order: Callable[[int, Storefronts], Awaitable[Order]],
        *,
        words: StatusWords,
        guard: Guard,
        batcher: Batcher,
    ) -> None:
        """Read by ``get_order``, which raises OrderNotFound."""
        self._database = database
        self._get_order = get_order
        self._words = words
        self._guard = guard
        self._batcher = batcher
        self._refused = RefusedEvents(database)

    async def write(
        self, order_id: int, update: PaymentUpdate, origin: Origin, storefronts: Storefronts
    ) -> Update:
        """Write ``update``, or return what an earlier request with its key has left.

        It is one round trip, unless something is refused, repeated or unusual. Raises
        OrderNotFound, IdempotencyKeyReused, EtagMismatch, PaymentEventRefused or another
        PersistenceError; ValueError when nothing is to be set.
        """
        request = self._request(order_id, update, origin, storefronts)
        version = None if update.etag is None else version_of(update.etag)
        how = _Try(self._guard is not Guard.OFF, version)
        for _ in range(_MAX_TRIES):
            try:
                row = await self._run(request, how)
            except _KeyUsed:
                how = how._replace(is_second=True, is_key_used=True, is_further_use=False)
                continue
            if row is not None and (not how.is_second or row[-1]):
                return await self._written(request, how, _order(row))
            if not how.is_second:
                how = how._replace(is_second=True)
                continue
            order = None if row is None else self._words.classified(_order(row))
            found = await self._resolve(request, order)
            if isinstance(found, Update):
                return found
            how = found
        raise TransactionConflict(f"the payment of order {order_id} keeps changing")

    def _request(
        self, order_id: int, update: PaymentUpdate, origin: Origin, storefronts: Storefronts
    ) -> _Request:
        columns = tuple(
            name for name, value in zip(PAYMENT_COLUMNS, update, strict=False) if value is not None
        )
        if not columns and update.captured_amount is None and update.refunded_amount is None:
            raise ValueError("no payment column and no amount is set")
        meaning = None
        if update.payment_status is not None:
            meaning = self._words.meaning(update.payment_status)
            if meaning.reverses is Reversal.REFUND and update.refunded_amount:
                # Of several refunds, not all have failed.
                meaning = meaning._replace(state=PaymentState.PARTIALLY_REFUNDED)
        digest = None if update.payment_idempotency_key is None else request_digest(update)
        return _Request(order_id, update, meaning, origin, storefronts, columns, digest)

    async def _run(self, request: _Request, how: _Try) -> Sequence[Any] | None:
        """Run the UPDATE and return its row, if any. Raises _KeyUsed or a PersistenceError."""
        update, meaning = request.update, request.meaning
        scope = queries.scope_args(request.storefronts)
        is_rich = how.is_second or update[_TEXTS:] != _NOTHING_RICH
        known = _known(meaning)
        shape = Shape(request.columns, is_rich, bool(scope), known.is_fixed, how.is_second)
        is_guarded = how.guarded and update.override_reason is None
        rules = Rules(
            known.refusals if is_guarded else decision.NO_REFUSALS,
            known.targets,
            known.is_reversal,
            how.version,
            self._second(how),
        )
        recorded = Recorded(
            request.origin.request_id,
            request.origin.caller or "",
            request.digest,
            _details(update) if is_rich else "",
        )
        try:
            return await self._batcher.fetchrow(
                _batched(shape),
                request.order_id,
                *arguments(shape, update, rules, recorded, scope),
            )
        except UniqueViolation as violation:
            if violation.constraint in _KEY_INDEXES:
                raise _KeyUsed from violation
            raise

    def _second(self, how: _Try) -> Second | None:
        if not how.is_second:
            return None
        return Second(self._words.states_json, not how.is_key_used, how.is_further_use)

    async def _written(self, request: _Request, how: _Try, order: Order) -> Update:
        if how.would_be_refused is not None:
            with suppress(RefusalNotRecorded):  # what is written is acknowledged in any case
                await self._record(request, how.would_be_refused, written=True)
        return Update(order, replayed=False, would_be_refused=how.would_be_refused)

    async def _resolve(self, request: _Request, order: Order | None) -> _Try | Update:
        """Find out why nothing was written, given the ``order`` that the second try has returned.

        Return the replay of an earlier update, or how to try again; or raise why it is refused,
        once that is on record. The order of the checks is that of the contract.

        The first try does not tell a refusal from a replay, an unclassified order or a further use
        of a key. The order is of the second try's snapshot: where another transaction is about to
        change it, the refusal comes before that change.
        """
        order_id, update = request.order_id, request.update
        if order is None and request.storefronts is not None:
            raise OrderNotFound(order_id)
        uses = await self._uses_of_key(request)
        if uses and uses[0].order_id != order_id:
            await self._refused.record(
                order_id,
                order,
                update,
                self._state(request, order),
                Reason.KEY_REUSED,
                request.origin,
            )
            raise IdempotencyKeyReused(order_id, used_for=uses[0].order_id)
        if any(_is_same_request(event, request) for event in uses):
            return Update(await self._get_order(order_id, None), replayed=True)
        if order is None:
            raise OrderNotFound(order_id)
        version = order.payment_version or 0
        if update.etag is not None and version_of(update.etag) != version:
            raise EtagMismatch(order_id)
        how = _Try(
            self._guard is not Guard.OFF,
            None if update.etag is None else version,
            is_second=True,
            is_key_used=bool(uses),
            is_further_use=bool(uses),
        )
        reason = decision.judge(order, update, request.meaning, guarded=how.guarded)
        if reason is None:
            return how
        if await self._is_follow_up(request, order, reason):
            reason = decision.judge(
                order, update, request.meaning, attempt=Attempt.OWN, guarded=how.guarded
            )
            if reason is None:
                return how._replace(guarded=False, version=version)
        refusal = PaymentEventRefused(reason, order, update, self._state(request, order))
        if self._guard is Guard.SHADOW:
            reason = decision.judge(order, update, request.meaning, guarded=False)
            if reason is None:
                return how._replace(guarded=False, version=version, would_be_refused=refusal)
            refusal = PaymentEventRefused(reason, order, update, refusal.new)
        await self._record(request, refusal)
        raise refusal

    async def _record(
        self, request: _Request, refusal: PaymentEventRefused, *, written: bool = False
    ) -> None:
        await self._refused.record(
            request.order_id,
            refusal.order,
            request.update,
            refusal.new,
            refusal.reason,
            request.origin,
            written=written,
        )

    def _state(self, request: _Request, order: Order | None) -> PaymentState | None:
        """Return the state that the request would lead to, None if it has no status."""
        if request.meaning is None:
            return None
        if order is None:
            return request.meaning.state
        return decision.state_after(order, request.meaning)

    async def _is_follow_up(self, request: _Request, order: Order, reason: Reason) -> bool:
        """Return whether a refund, dispute or chargeback with an unseen intent is the order's."""
        update, provider = request.update, order.payment_provider
        return (
            update.payment_intent_id is not None
            and provider is not None
            and decision.may_follow_up(PaymentState(order.payment_state), request.meaning, reason)
            and not decision.is_other_provider(update.payment_provider, provider)
            and self._words.has_own_intents(provider)
            and await self._refused.is_unseen(order.id, update.payment_intent_id)
        )

    async def _uses_of_key(self, request: _Request) -> list[PaymentEvent]:
        """Return the event with the first use of the key, then one of the same request, if any."""
        if request.update.payment_idempotency_key is None:
            return []
        rows = await self._database.fetch(
            queries.get_events_by_key(), request.update.payment_idempotency_key, request.digest
        )
        events = [PaymentEvent._make(row) for row in rows]
        return sorted(events, key=lambda event: event.idempotency_key is None)


def request_digest(update: PaymentUpdate) -> str:
    """Return what distinguishes a request with a key from others with the same key."""
    given = zip(PaymentUpdate._fields, update, strict=True)
    text = "\0".join(
        f"{name}={value}" for name, value in given if value is not None and name in _IDENTITY
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _details(update: PaymentUpdate) -> str:
    given = {name: getattr(update, name) for name in _DETAILS}
    details = {name: value for name, value in given.items() if value is not None}
    return json.dumps(details, default=str) if details else ""


def _is_same_request(event: PaymentEvent, request: _Request) -> bool:
    if event.request_digest is not None:
        return event.request_digest.hex == request.digest
    # Of the version before. An event that was made from a payment older than the history does not
    # have the fields.
    update = {name: getattr(request.update, name) for name in _IDENTITY}
    given = {name: value for name, value in update.items() if value is not None}
    fields = given.keys() if event.request_fields is None else set(event.request_fields)
    return fields == given.keys() and all(
        getattr(event, f"{name}_after", None) == value for name, value in given.items()
    )


def _order(row: Sequence[Any]) -> Order:
    """Return the order in a row, which in a second try has one column more."""
    return Order._make(row[: len(Order._fields)])


@cache
def _batched(shape: Shape) -> BatchedStatement:
    return BatchedStatement(statement(shape), statement(shape, lock_timeout=True))
