"""The service's values as the model of payments has them, and the other way round."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from persistence.models import PAYMENT_COLUMNS, PaymentUpdate
from persistence.payment_states import Meaning, PaymentState
from persistence.status_words import StatusWords
from tests.support.payment_model import Order, Request, Rules
from tests.support.payment_words import Reversal, State, Words

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

TABLE: Final = StatusWords.builtin()


def meaning(of: Meaning) -> State | Reversal:
    """Return the model's meaning of a word."""
    return State[of.state.name] if of.reverses is None else Reversal(of.reverses.value)


def words(table: StatusWords = TABLE) -> Words:
    """Return the words of the service's table."""
    return {word: meaning(each) for word, each in table.meanings.items()}


def rules(table: StatusWords = TABLE) -> Rules:
    """Return the model's rules with the words and the providers of the service's table."""
    return Rules(words(table), table.own_intents)


def time(microseconds: int | None) -> datetime | None:
    """Return a time of the model as an aware time."""
    return None if microseconds is None else _EPOCH + microseconds * _MICROSECOND


def microseconds(time: datetime | None) -> int | None:
    """Return an aware time as the model has it."""
    return None if time is None else (time - _EPOCH) // _MICROSECOND


def update(request: Request, etag: str | None = None) -> PaymentUpdate:
    """Return what the repository takes for ``request``. The etag is the service's."""
    values = request._asdict() | {
        "payment_event_time": time(request.payment_event_time),
        "currency": request.currency and request.currency.upper(),
        "etag": etag,
    }
    return PaymentUpdate(**{name: values[name] for name in PaymentUpdate._fields})


def state(number: int | None, word: str) -> State:
    """Return the state in a column, where that is null, the state of the word."""
    known = TABLE.state(word) if number is None else PaymentState(number)
    return State[known.name]


def order(row: Mapping[str, Any]) -> Order:
    """Return a row of ``orders``, without the number of events that were taken."""
    before = row["contested_from"]
    return Order(
        **{name: row[name] for name in PAYMENT_COLUMNS},
        payment_event_time=microseconds(row["payment_event_time"]),
        captured_amount=row["captured_amount"],
        refunded_amount=row["refunded_amount"],
        payment_state=state(row["payment_state"], row["payment_status"]),
        contested_from=None if before is None else State[PaymentState(before).name],
        session_stale=row["payment_session_stale"],
        intent_stale=row["payment_intent_stale"],
        currency=row["currency"],
        total_amount=row["total_amount"],
    )
