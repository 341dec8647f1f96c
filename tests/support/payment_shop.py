"""The model of payments, continued: several orders, the keys, etags, and what is on record.

Orders may also change by hand, as by plain SQL. The model leaves out what has no part in the
decision: permissions, the validation of a request, and the limit of rows of refused events.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple

from tests.support.payment_model import Known, Order, Reason, Request, Rules
from tests.support.payment_words import SETTLED, Reversal, Words, plain

OK: Final = "ok"
REPLAYED: Final = "replayed"
NOT_FOUND: Final = "NOT_FOUND"
ETAG_MISMATCH: Final = "ETAG_MISMATCH"


class Guard(StrEnum):
    """The values of ``LISTINGS_STATUS_GUARD``."""

    ON = "on"
    SHADOW = "shadow"
    OFF = "off"


class Taken(NamedTuple):
    """An event of the history."""

    order: str
    request: Request
    """Empty for a change by hand."""
    before: Order
    after: Order


@dataclass
class Refused:
    """A refused event, with the request that came first and how often it came."""

    order: str
    reason: Reason
    request: Request
    found: Order | None
    """The order then; None if there is none."""
    written: bool = False
    """Whether the event was taken all the same: the guard is a shadow."""
    times: int = 1

    def digest(self, words: Words) -> tuple[object, ...]:
        """Return what makes two refusals equal; for orders that there are not, of all of them."""
        order = None if self.found is None else self.order
        return (order, self.reason, self.written, told_by(self.request, self.found, words))


@dataclass
class Shop:
    """Orders by name, and what is known of their payments."""

    orders: dict[str, Order]
    rules: Rules = field(default_factory=Rules)
    guard: Guard = Guard.ON
    history: list[Taken] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    """The order that each key belongs to for good: the first for which an event was taken."""
    seen: int | None = None
    """How many refused events the look-ups see; None for all. A refusal may be judged, and not yet
    on record, when another event is."""

    def update(self, name: str, request: Request) -> str:
        """Return ``ok``, ``replayed``, or why nothing was written."""
        key = request.payment_idempotency_key
        if key is not None and self.keys.get(key, name) != name:
            return self._refuse(name, Reason.KEY_REUSED, request)
        if key is not None and self._was_taken(name, request):
            return REPLAYED
        order = self.orders.get(name)
        if order is None:
            return NOT_FOUND
        if request.etag not in {None, order.etag}:
            return ETAG_MISMATCH
        return self._decide(name, order, request)

    def change_by_hand(self, name: str, **columns: str) -> None:
        """Change texts of a payment as plain SQL does.

        The state is that of the word, and has no time. Nothing is known of an id that is new.
        """
        before = self.orders[name]
        after = Order(**before._asdict() | columns)
        if after == before:
            return
        after = after._replace(
            session_stale=before.session_stale and _is_same(before, after, "payment_session_id"),
            intent_stale=before.intent_stale and _is_same(before, after, "payment_intent_id"),
        )
        if not _is_same(before, after, "payment_status"):
            after = after._replace(
                payment_state=self.rules.state_by_hand(after.payment_status),
                payment_event_time=None,
                contested_from=None,
            )
        after = after.counted(before)
        self.orders[name] = after
        self.history.append(Taken(name, Request(), before, after))

    def copy(self) -> "Shop":
        """Return a shop that changes apart from this one."""
        return replace(
            self,
            orders=dict(self.orders),
            history=list(self.history),
            refused=[replace(each) for each in self.refused],
            keys=dict(self.keys),
        )

    def _decide(self, name: str, order: Order, request: Request) -> str:
        reason = self.rules.judge(order, request, self._known(name))
        if reason is not None and self.guard is not Guard.ON:
            passed_over, reason = reason, self.rules.judge(order, request, guarded=False)
            if reason is None and self.guard is Guard.SHADOW:
                self._refuse(name, passed_over, request, written=True)
        return self._take(name, request) if reason is None else self._refuse(name, reason, request)

    def _take(self, name: str, request: Request) -> str:
        before = self.orders[name]
        after = self.rules.apply(before, request)
        self.orders[name] = after
        self.history.append(Taken(name, request, before, after))
        if request.payment_idempotency_key is not None:
            self.keys.setdefault(request.payment_idempotency_key, name)
        return OK

    def _refuse(
        self, name: str, reason: Reason, request: Request, *, written: bool = False
    ) -> Reason:
        record = Refused(name, reason, request, self.orders.get(name), written)
        words = self.rules.words
        for earlier in self.refused:
            if earlier.digest(words) == record.digest(words):
                earlier.times += 1
                return reason
        self.refused.append(record)
        return reason

    def _was_taken(self, name: str, request: Request) -> bool:
        return any(
            each.order == name and each.request.as_compared() == request.as_compared()
            for each in self.history
        )

    def _known(self, name: str) -> Known:
        seen = [each for each in self.refused[: self.seen] if not each.written]
        had = {each.after.payment_intent_id for each in self.history if each.order == name}
        told = {
            each.request.payment_intent_id
            for each in seen
            if each.order == name and each.reason in {Reason.NOT_CURRENT, Reason.DUPLICATE}
        }
        duplicate = any(
            each.request.payment_intent_id is None or each.request.payment_intent_id not in had
            for each in seen
            if each.order == name and each.reason is Reason.DUPLICATE
        )
        return Known({intent for intent in had | told if intent is not None}, duplicate)


def told_by(request: Request, found: object, words: Words) -> Request:
    """Return what makes refused events of an order equal: not the key, the time or the etag.

    ``found`` is None if there is no such order: then the key, and whether it tells of money.
    """
    if found is None:
        key, word = request.payment_idempotency_key, request.payment_status
        money = tells_of_money(word, words)
        return Request("money" if money else None, payment_idempotency_key=key)
    return request.as_compared()._replace(
        payment_idempotency_key=None,
        payment_event_time=None,
        payment_provider=_plain(request.payment_provider),
        payment_status=_plain(request.payment_status),
    )


def tells_of_money(word: str | None, words: Words) -> bool:
    """Tell whether a word means that money has moved."""
    meaning = None if word is None else words.get(plain(word))
    return isinstance(meaning, Reversal) or meaning in SETTLED


def _plain(text: str | None) -> str | None:
    return None if text is None else plain(text)


def _is_same(before: Order, after: Order, column: str) -> bool:
    return bool(getattr(before, column) == getattr(after, column))
