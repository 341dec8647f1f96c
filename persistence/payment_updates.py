"""Updates of payments: written in one statement, or resolved when that has written nothing."""

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import cache, partial
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
from persistence.idempotency_keys import IdempotencyKeys, request_digest
from persistence.models import (
    PAYMENT_COLUMNS,
    RECORDED_FIELDS,
    Order,
    Origin,
    PaymentUpdate,
    Storefronts,
    version_of,
)
from persistence.payment_states import Meaning, PaymentState, Reversal
from persistence.refused_events import Refusal, RefusedEvents
from persistence.status_words import StatusWords
from persistence.update_statement import Recorded, Rules, Second, arguments, statement
from persistence.update_terms import Shape

# The second try is part of the usual way. There are more where the reason for which nothing was
# written is gone by the time it is looked for.
_MAX_TRIES: Final = 8

_TEXTS: Final = len(PAYMENT_COLUMNS)
"""How many of the fields of a ``PaymentUpdate`` come first: by position, they are found faster."""

# What the history keeps of a request as it came.
_DETAILS: Final = RECORDED_FIELDS[_TEXTS:]

_NOTHING_RICH: Final = PaymentUpdate()[_TEXTS:]


class Guard(Enum):
    """What becomes of an update that the rules of payments refuse."""

    ON = "on"
    """It is refused."""
    SHADOW = "shadow"
    """It is written, and recorded as one that would be refused."""
    OFF = "off"
    """It is written."""


class Update(NamedTuple):
    """The result of an update."""

    order: Order
    """As it stands after the update."""
    replayed: bool
    """Whether an earlier request with the same key had made the update."""
    would_be_refused: PaymentEventRefused | None = None
    """Why it would be refused, where the rules are only tried out."""


class _Request(NamedTuple):
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
    """Whether the first try has failed by a unique index, which may be one of keys."""
    is_further_use: bool = False
    """Whether the key is the order's by an earlier event, which is another request."""
    would_be_refused: PaymentEventRefused | None = None

    def writes_as(self, other: "_Try") -> bool:
        """Return whether the same is written, on the same conditions."""
        return self._replace(would_be_refused=None) == other._replace(would_be_refused=None)


@cache
def _rules(meaning: Meaning | None, *, is_guarded: bool) -> Rules:
    """Return the rules for a first try, of any version of the order."""
    targets: PaymentState | bytes | None = None
    if meaning is not None:
        targets = decision.fixed_state(meaning) or decision.targets(meaning)
    return Rules(
        decision.refusals(meaning) if is_guarded else decision.NO_REFUSALS,
        targets,
        is_reversal=meaning is not None and meaning.reverses is not None,
        version=None,
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
        self._first_try = _Try(guarded=guard is not Guard.OFF)
        self._batcher = batcher
        self._keys = IdempotencyKeys(database)
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
        how = self._first_try if version is None else self._first_try._replace(version=version)
        for _ in range(_MAX_TRIES):
            violation = None
            try:
                row = await self._run(request, how)
                if row is not None and (not how.is_second or row[-1]):
                    return await self._written(request, how, _order(row))
                if not how.is_second:
                    how = how._replace(is_second=True)
                    continue
                order = None if row is None else self._words.classified(_order(row))
            except UniqueViolation as error:
                # Of the key, perhaps. The name of the index does not tell: it changes while an
                # index is rebuilt (REINDEX CONCURRENTLY), and when it is renamed.
                if request.digest is None:
                    raise
                if not how.is_second:
                    how = how._replace(is_second=True, is_key_used=True)
                    continue
                violation = error
                order = await self._get_order(order_id, storefronts)
            found = await self._resolve(request, order)
            if isinstance(found, Update):
                return found
            if violation is not None and found.writes_as(how):  # it is not of the key
                raise violation
            how = found
        raise TransactionConflict(f"the payment of order {order_id} keeps changing")

    def _request(
        self, order_id: int, update: PaymentUpdate, origin: Origin, storefronts: Storefronts
    ) -> _Request:
        texts = zip(PAYMENT_COLUMNS, update, strict=False)
        columns = tuple([name for name, value in texts if value is not None])
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
        """Run the UPDATE and return its row, if any. Raises a PersistenceError."""
        update = request.update
        scope = queries.scope_args(request.storefronts)
        is_rich = how.is_second or update[_TEXTS:] != _NOTHING_RICH
        rules = _rules(request.meaning, is_guarded=how.guarded and update.override_reason is None)
        if how.version is not None or how.is_second:
            rules = rules._replace(version=how.version, second=self._second(how))
        has_fixed_state = isinstance(rules.targets, PaymentState)
        shape = Shape(request.columns, is_rich, bool(scope), has_fixed_state, how.is_second)
        details = _details(update) if is_rich else {}
        recorded = Recorded(
            request.origin.request_id,
            request.origin.caller or "",
            _bits((*request.columns, *details)),
            request.digest or "",
            json.dumps(details, default=str) if details else "",
        )
        return await self._batcher.fetchrow(
            _batched(shape),
            request.order_id,
            *arguments(shape, update, rules, recorded, scope),
        )

    def _second(self, how: _Try) -> Second | None:
        if not how.is_second:
            return None
        is_used = how.is_key_used or how.is_further_use
        return Second(self._words.states_json, not is_used, how.is_further_use)

    async def _written(self, request: _Request, how: _Try, order: Order) -> Update:
        if (error := how.would_be_refused) is not None:
            refusal = _refusal(request, error.order, error.reason)
            with suppress(RefusalNotRecorded):  # what is written is acknowledged in any case
                await self._refused.record(refusal, request.origin, written=True)
        return Update(order, replayed=False, would_be_refused=how.would_be_refused)

    async def _resolve(self, request: _Request, order: Order | None) -> _Try | Update:
        """Find out why nothing was written, given the ``order`` as it stood after that.

        Return the replay of an earlier update, or how to try again; or raise why it is refused,
        once that is on record. The order of the checks is that of the contract.

        The first try does not tell a refusal from a replay, an unclassified order or a further use
        of a key. The order is of the second try's snapshot: where another transaction is about to
        change it, the refusal comes before that change.
        """
        if order is None and request.storefronts is not None:
            raise OrderNotFound(request.order_id)
        use = await self._keys.use(request.order_id, request.update, request.digest, order)
        if use.is_same_request:
            return Update(await self._get_order(request.order_id, None), replayed=True)
        if use.order_id is not None and use.order_id != request.order_id:
            refusal = _refusal(request, order, Reason.KEY_REUSED)
            await self._refused.record(refusal, request.origin)
            raise IdempotencyKeyReused(request.order_id, used_for=use.order_id)
        if order is None:
            raise OrderNotFound(request.order_id)
        how = self._first_try._replace(
            version=_expected_version(request, order),
            is_second=True,
            is_further_use=use.order_id is not None,
        )
        return await self._judge(request, order, how)

    async def _judge(self, request: _Request, order: Order, how: _Try) -> _Try:
        """Return how to write an update that the rules of payments allow: ``how``, or without them.

        Without the rules, it is written only if the order is still as it was judged here. Raises
        PaymentEventRefused, once the event is on record.
        """
        judge = partial(decision.judge, order, request.update, request.meaning)
        reason = judge(guarded=how.guarded)
        if reason is None:
            return how
        as_judged = how._replace(guarded=False, version=order.payment_version or 0)
        if await self._is_follow_up(request, order, reason):
            reason = judge(attempt=Attempt.OWN, guarded=how.guarded)
            if reason is None:
                return as_judged
        if self._guard is Guard.SHADOW:
            passed_over, reason = reason, judge(guarded=False)
            if reason is None:
                error = _refused(request, order, passed_over)
                return as_judged._replace(would_be_refused=error)
        await self._refused.record(_refusal(request, order, reason), request.origin)
        raise _refused(request, order, reason)

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


def _expected_version(request: _Request, order: Order) -> int | None:
    """Return the version that the order must have; None for any. Raises EtagMismatch."""
    etag, version = request.update.etag, order.payment_version or 0
    if etag is None:
        return None
    if version_of(etag) != version:
        raise EtagMismatch(order.id)
    return version


def _refusal(request: _Request, order: Order | None, reason: Reason) -> Refusal:
    return Refusal(reason, request.order_id, order, request.update, request.meaning)


def _refused(request: _Request, order: Order, reason: Reason) -> PaymentEventRefused:
    new = _refusal(request, order, reason).state
    return PaymentEventRefused(reason, order, request.update, new)


def _details(update: PaymentUpdate) -> dict[str, object]:
    given = {name: getattr(update, name) for name in _DETAILS}
    return {name: value for name, value in given.items() if value is not None}


@cache
def _bits(fields: tuple[str, ...]) -> int:
    return sum(1 << RECORDED_FIELDS.index(name) for name in fields)


def _order(row: Sequence[Any]) -> Order:
    """Return the order in a row, which in a second try has one column more."""
    return Order._make(row[: len(Order._fields)])


@cache
def _batched(shape: Shape) -> BatchedStatement:
    return BatchedStatement(statement(shape), statement(shape, lock_timeout=True))
