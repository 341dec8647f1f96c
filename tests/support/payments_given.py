"""Strategies of hypothesis for what happens to a few orders: calls, also at once, and changes."""

from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from tests.support import by_model
from tests.support.payment_model import Request
from tests.support.payment_shop import Guard

NAMES: Final = ("a", "b", "missing")
"""The orders. The last one does not exist."""

CURRENT: Final = "current"
"""For an etag: what the order has at the moment. Any other is stale."""


class Call(NamedTuple):
    """An update, by a service with this guard."""

    order: str
    request: Request
    """Its etag is a marker."""
    guard: Guard


class Send(NamedTuple):
    """Make a call, and cancel it after ``patience`` turns of the event loop, if that is set."""

    call: Call
    patience: int | None


class Again(NamedTuple):
    """Repeat one of the calls so far, as it was or with other values."""

    back: int
    changes: dict[str, Any]
    """Fields of the request."""
    patience: int | None


class AtOnce(NamedTuple):
    """Make the calls at the same time."""

    calls: tuple[Call, ...]


class ByHand(NamedTuple):
    """Change columns of an order by SQL."""

    order: str
    columns: dict[str, str]


def _by_meaning() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"unknown": ["piad", "in_review", "under-review"]}
    for entry in by_model.TABLE.entries():
        found.setdefault(entry.meaning, []).append(entry.word)
    return found


def _respelled(word: str, how: int) -> str:
    return (word, word.upper(), f" {word} ", word.replace("_", "-"))[how]


def _some(*values: Any, unset: int = 1) -> st.SearchStrategy[Any]:
    """Return a strategy of these values, and of None as often as ``unset`` values."""
    return st.sampled_from([*[None] * unset, *values])


# Each meaning is as frequent as any other, however many words it has; PAID more so.
_meanings = st.sampled_from([*_by_meaning(), "PAID", "PAID"])
_words = st.builds(
    _respelled,
    _meanings.flatmap(lambda meaning: st.sampled_from(_by_meaning()[meaning])),
    st.sampled_from([0, 0, 0, 0, 1, 2, 3]),
)
_PROVIDERS: Final = ("stripe", "Stripe", "STR-ipe ", "allsecure", "AllSecure", "adyen")
_AMOUNTS: Final = (0, 3_000, 10_000, 12_000)
_requests = st.builds(
    Request,
    payment_status=st.one_of(_words, _words, _words, st.just(None)),
    payment_provider=_some(*_PROVIDERS, unset=4),
    payment_session_id=_some("s1", "s2", unset=2),
    payment_intent_id=_some("i1", "i2", "i3", unset=2),
    payment_transaction_id=_some("t1", "t2", "t3", unset=6),
    payment_idempotency_key=_some("k", "l", "m", unset=4),
    # Microseconds: two of them lie in the same second.
    payment_event_time=_some(1_000_000, 5_000_000, 5_400_000, 9_000_000, unset=4),
    captured_amount=_some(*_AMOUNTS, unset=12),
    refunded_amount=_some(*_AMOUNTS, unset=12),
    currency=_some("eur", "EUR", "eUr", "usd", unset=12),
    etag=_some(CURRENT, "stale", unset=12),
    override_reason=_some("it is so", unset=12),
).filter(lambda request: any(value is not None for value in (*request[:6], *request[7:9])))
_guards = st.sampled_from([*[Guard.ON] * 6, Guard.SHADOW, Guard.OFF])
_calls = st.builds(Call, st.sampled_from(["a", "a", "a", "a", "b", "missing"]), _requests, _guards)
_patience = _some(*range(40), unset=80)
_changes = st.fixed_dictionaries(
    {},
    optional={
        "payment_status": _words,
        "payment_session_id": st.sampled_from(["s1", "s2"]),
        "payment_intent_id": st.sampled_from(["i1", "i2"]),
        "payment_provider": st.sampled_from(_PROVIDERS),
    },
).filter(bool)

_changes_of_request: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.sampled_from(
        [
            {name: value}
            for name, values in {
                "payment_event_time": (None, 1_000_000, 5_000_000, 9_000_000),
                "payment_transaction_id": ("t1", "t2"),
                "payment_idempotency_key": ("k", "l"),
                "captured_amount": (3_000, 10_000),
                "refunded_amount": (3_000, 10_000),
                "currency": ("eur", "EUR"),
                "etag": (CURRENT, "stale"),
                "override_reason": ("it is so",),
            }.items()
            for value in values
        ]
    ),
)

_sends = st.builds(Send, _calls, _patience)
lives = st.lists(
    st.one_of(
        *[_sends] * 5,
        st.builds(Again, st.integers(0, 30), _changes_of_request, _patience),
        st.builds(ByHand, st.sampled_from(NAMES[:2]), _changes),
        st.lists(_calls, min_size=2, max_size=4).map(lambda calls: AtOnce(tuple(calls))),
    ),
    min_size=10,
    max_size=40,
)
"""What happens to the orders, one after the other."""
