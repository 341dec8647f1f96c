"""The rules of payments as a plain model: what an order becomes, or why an event is refused.

The model is written apart from the service, and imports nothing of it, so that tests can hold one
against the other. ``Rules`` judges one event and applies it; ``tests.support.payment_shop`` adds
what lies around that.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final, NamedTuple

from tests.support.payment_words import (
    CONTESTED,
    DEFAULT_WORDS,
    ENDED,
    OPEN,
    SETTLED,
    Reversal,
    State,
    Words,
    plain,
)


class Order(NamedTuple):
    """A row of ``orders``, as far as payments go. Times are in microseconds."""

    payment_status: str = "pending"
    payment_provider: str | None = None
    payment_session_id: str | None = None
    payment_intent_id: str | None = None
    payment_transaction_id: str | None = None
    payment_idempotency_key: str | None = None
    payment_event_time: int | None = None
    captured_amount: int | None = None
    refunded_amount: int | None = None
    payment_state: State = State.PENDING
    contested_from: State | None = None
    session_stale: bool = False
    intent_stale: bool = False
    currency: str = "EUR"
    total_amount: int = 10_000
    changes: int = 0
    """How many changes of the payment there were."""

    @property
    def etag(self) -> str:
        """A token that changes with every change of the payment."""
        return str(self.changes)

    def counted(self, before: "Order") -> "Order":
        """Return the order with one more change, if it differs from the one ``before``."""
        return self if self == before else self._replace(changes=before.changes + 1)


class Request(NamedTuple):
    """The fields of ``UpdateOrderPaymentRequest``, but for the order. Times are in microseconds."""

    payment_status: str | None = None
    payment_provider: str | None = None
    payment_session_id: str | None = None
    payment_intent_id: str | None = None
    payment_transaction_id: str | None = None
    payment_idempotency_key: str | None = None
    payment_event_time: int | None = None
    captured_amount: int | None = None
    refunded_amount: int | None = None
    currency: str | None = None
    etag: str | None = None
    override_reason: str | None = None

    def as_compared(self) -> "Request":
        """Return the part in which a replay equals the request that it repeats."""
        currency = None if self.currency is None else self.currency.upper()
        return self._replace(currency=currency, etag=None, override_reason=None)


class Attempt(Enum):
    """Which attempt to pay the order a request is about."""

    OWN = "the order's current one"
    OTHER = "another one"
    UNKNOWN = "one that cannot be told from either"


class Reason(StrEnum):
    """Why an event is refused: the reasons of ErrorInfo."""

    NOT_CURRENT = "PAYMENT_ATTEMPT_NOT_CURRENT"
    DUPLICATE = "PAYMENT_DUPLICATE"
    LATE = "PAYMENT_EVENT_LATE"
    CURRENCY = "PAYMENT_CURRENCY_MISMATCH"
    REFUSED = "PAYMENT_STATUS_REFUSED"
    UNKNOWN_WORD = "PAYMENT_STATUS_UNKNOWN"
    KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"


class Known(NamedTuple):
    """What history and refused events tell of an order; only a refusal is decided by it."""

    intents: Collection[str] = frozenset()
    """Intents of events that were taken, or refused as NOT_CURRENT or DUPLICATE."""
    duplicate: bool = False
    """Whether a DUPLICATE is on record whose intent the order never had."""


NOTHING_KNOWN: Final = Known()

# Where money may go on to, once it has moved. The state itself is always allowed.
_ONWARD: Final[Mapping[State, Collection[State]]] = {
    State.PAID: SETTLED - {State.PAID},
    State.PARTIALLY_REFUNDED: {State.REFUNDED, State.RETURNED, *CONTESTED},
    State.REFUNDED: {State.RETURNED, *CONTESTED},
    State.DISPUTED: {State.PARTIALLY_REFUNDED, State.REFUNDED, State.CHARGED_BACK},
    State.CHARGED_BACK: (),
    State.RETURNED: (),
}
_NOT_BACK: Final[Mapping[State, Collection[State]]] = {
    State.PROCESSING: {State.UNKNOWN},
    State.AUTHORIZED: {State.UNKNOWN, State.PENDING, State.REQUIRES_ACTION},
}
_REFUNDABLE: Final = {State.PAID, State.PARTIALLY_REFUNDED, State.REFUNDED}

# What another attempt may not bring to a payment that is under way; None is a request without word.
_STARTS: Final = {None, State.UNKNOWN, State.PENDING, State.REQUIRES_ACTION}
_WEAKER: Final[Mapping[State, Collection[State | None]]] = {
    State.PROCESSING: _STARTS,
    State.AUTHORIZED: {*_STARTS, State.PROCESSING},
}


def _earlier(time: int | None, than: int | None) -> bool:
    """Tell whether both times are known and differ by their whole seconds."""
    return time is not None and than is not None and time // 1_000_000 < than // 1_000_000


@dataclass(frozen=True)
class Rules:
    """The decision about one event, and its effect."""

    words: Words = field(default_factory=lambda: DEFAULT_WORDS)
    with_intents_of_their_own: Collection[str] = ("allsecure",)
    """Providers whose refunds, disputes and chargebacks name an intent of their own."""

    def reversal(self, request: Request) -> Reversal | None:
        """Return what the request's word takes back."""
        meaning = self._meaning(request)
        return meaning if isinstance(meaning, Reversal) else None

    def target(self, order: Order, request: Request) -> State | None:
        """Return the state that the request leads to; None if it names no word."""
        meaning, now = self._meaning(request), order.payment_state
        match meaning:
            case State.RETURNED if now not in SETTLED:
                return State.FAILED  # nothing was paid that could come back
            case Reversal() if now not in SETTLED:
                return State.PAID
            case Reversal.CONTEST if now in CONTESTED:
                return order.contested_from or State.PAID
            case Reversal.CONTEST:
                return now  # it comes before what it takes back
            case Reversal.REFUND:
                return State.PARTIALLY_REFUNDED if request.refunded_amount else State.PAID
        return meaning

    def attempt(self, order: Order, request: Request) -> Attempt:
        """Return the attempt that the request is about."""
        if self._changes_provider(order, request):
            return Attempt.OTHER
        told = Attempt.OWN
        for given, held, stale in (
            (request.payment_intent_id, order.payment_intent_id, order.intent_stale),
            (request.payment_session_id, order.payment_session_id, order.session_stale),
        ):
            if given is None or held is None:
                continue
            if given == held:
                return Attempt.OTHER if stale else Attempt.OWN
            if not stale:
                return Attempt.OTHER
            told = Attempt.UNKNOWN
        return told

    def judge(
        self, order: Order, request: Request, known: Known = NOTHING_KNOWN, *, guarded: bool = True
    ) -> Reason | None:
        """Return why the request is refused; None if it is taken.

        Without the guard, or with a reason to override it, only the currency counts.
        """
        guarded = guarded and request.override_reason is None
        if guarded and (reason := self._of_attempt_and_time(order, request, known)):
            return reason
        if request.currency is not None and request.currency.upper() != order.currency:
            return Reason.CURRENCY
        if guarded and not self._may_move(order, request):
            unknown = self.target(order, request) is State.UNKNOWN
            return Reason.UNKNOWN_WORD if unknown else Reason.REFUSED
        return None

    def apply(self, order: Order, request: Request) -> Order:
        """Return the order after a request that was taken."""
        new = self.target(order, request)
        moved = self._changes_provider(order, request)
        other = self.attempt(order, request) is Attempt.OTHER
        named = {
            name: value
            for name, value in request._asdict().items()
            if value is not None and name in _COPIED
        }
        if order.payment_provider is not None and not moved:
            named.pop("payment_provider", None)  # at most another spelling
        lost_session = moved and order.payment_session_id is not None
        lost_intent = other and order.payment_intent_id is not None
        after = order._replace(
            **named,
            payment_state=new or order.payment_state,
            payment_event_time=self._time_after(order, request),
            contested_from=_contested_from(order, new),
            captured_amount=self._amount(order.captured_amount, request.captured_amount, request),
            refunded_amount=self._amount(order.refunded_amount, request.refunded_amount, request),
            session_stale=request.payment_session_id is None
            and (order.session_stale or lost_session),
            intent_stale=request.payment_intent_id is None and (order.intent_stale or lost_intent),
        )
        return after.counted(order)

    def state_by_hand(self, word: str) -> State:
        """Return the state of a word that is set by hand: nothing is reversed."""
        meaning = self.words.get(plain(word), State.UNKNOWN)
        return State.PAID if isinstance(meaning, Reversal) else meaning

    def _meaning(self, request: Request) -> State | Reversal | None:
        if request.payment_status is None:
            return None
        return self.words.get(plain(request.payment_status), State.UNKNOWN)

    def _changes_provider(self, order: Order, request: Request) -> bool:
        given, held = request.payment_provider, order.payment_provider
        return given is not None and held is not None and plain(given) != plain(held)

    def _of_attempt_and_time(self, order: Order, request: Request, known: Known) -> Reason | None:
        """Return the reason that lies in the attempt or in the time of the event."""
        now, new = order.payment_state, self.target(order, request)
        which = self.attempt(order, request)
        other = which is Attempt.OTHER
        if which is not Attempt.OWN and now not in ENDED and new in ENDED:
            return Reason.NOT_CURRENT
        if other and now not in SETTLED and self.reversal(request) is not None:
            return Reason.NOT_CURRENT
        if other and new in _WEAKER.get(now, ()):
            return Reason.NOT_CURRENT
        if other and now in SETTLED:
            reason = self._of_another_on_settled(order, request, known)
            if reason is not None:
                return reason
        return Reason.LATE if self._is_late(order, request, other=other) else None

    def _of_another_on_settled(self, order: Order, request: Request, known: Known) -> Reason | None:
        now, new = order.payment_state, self.target(order, request)
        reverses = self.reversal(request) is not None
        if not reverses and new in {State.PAID, State.AUTHORIZED}:
            paid_anew = now is State.RETURNED and new is State.PAID
            return None if paid_anew else Reason.DUPLICATE
        follows_up = reverses or new in SETTLED
        listed = plain(order.payment_provider or "") in map(plain, self.with_intents_of_their_own)
        intent = request.payment_intent_id
        if (
            follows_up
            and listed
            and not self._changes_provider(order, request)
            and intent is not None
            and intent not in known.intents
            and not known.duplicate
        ):
            return None
        return Reason.NOT_CURRENT

    def _is_late(self, order: Order, request: Request, *, other: bool) -> bool:
        now, new = order.payment_state, self.target(order, request)
        if new is None or not _earlier(request.payment_event_time, order.payment_event_time):
            return False
        if new is now and not (other and now not in SETTLED):
            return False
        moved_money = new in SETTLED and (
            now in OPEN
            or now in {State.UNKNOWN, State.CANCELLED, State.EXPIRED}
            or (now in ENDED and other)
        )
        reserved = new is State.AUTHORIZED and now in {
            *(State.PENDING, State.REQUIRES_ACTION, State.UNKNOWN)
        }
        retried = other and now in ENDED and new in {State.AUTHORIZED, State.PROCESSING}
        return not (moved_money or reserved or retried)

    def _may_move(self, order: Order, request: Request) -> bool:
        now, new = order.payment_state, self.target(order, request)
        if new is None or new is now:
            return True
        if now not in SETTLED:
            return new not in _NOT_BACK.get(now, ())
        match self.reversal(request):
            case Reversal.CONTEST:
                return now in CONTESTED
            case Reversal.REFUND:
                return now in _REFUNDABLE
        paid_anew = new is State.PAID and self.attempt(order, request) is Attempt.OTHER
        return new in _ONWARD[now] or (now is State.RETURNED and paid_anew)

    def _time_after(self, order: Order, request: Request) -> int | None:
        """Return the time of the event that began the order's state.

        A plain PAID has none: who polls a payment reports it with a clock of their own, and nothing
        that it follows can be taken for what follows it.
        """
        now, new, time = (
            order.payment_state,
            self.target(order, request),
            request.payment_event_time,
        )
        reverses = self.reversal(request) is not None
        other = self.attempt(order, request) is Attempt.OTHER
        begins = new is not now or (reverses and time is not None) or (other and now not in SETTLED)
        if new is None or not begins:
            return order.payment_event_time
        if time is None or (new is State.PAID and not reverses):
            return None
        return time if order.payment_event_time is None else max(time, order.payment_event_time)

    def _amount(self, held: int | None, given: int | None, request: Request) -> int | None:
        """Return a total after the request: it only grows, unless something is taken back."""
        if given is None:
            return held
        sets = request.override_reason is not None or self.reversal(request) is not None
        return given if sets or held is None else max(held, given)


_COPIED: Final = {
    *("payment_status", "payment_provider", "payment_session_id", "payment_intent_id"),
    *("payment_transaction_id", "payment_idempotency_key"),
}


def _contested_from(order: Order, new: State | None) -> State | None:
    """Return where a dispute or chargeback leads back to; None while there is none."""
    now = order.payment_state
    if new is None or (new in CONTESTED and now in CONTESTED):
        return order.contested_from
    if new in CONTESTED:
        return now if now in SETTLED else State.PAID
    return None


def amounts_disagree(order: Order) -> bool:
    """Tell whether the amounts contradict each other, the total or the state."""
    captured, refunded = order.captured_amount, order.refunded_amount
    if captured is not None and captured > order.total_amount:
        return True
    if captured is not None and refunded is not None and refunded > captured:
        return True
    match order.payment_state:
        case State.PAID:
            return (captured is not None and captured != order.total_amount) or bool(refunded)
        case State.REFUNDED:
            return captured is not None and refunded is not None and refunded != captured
        case State.PARTIALLY_REFUNDED if refunded is not None:
            return refunded <= 0 or (captured is not None and refunded >= captured)
    return False
