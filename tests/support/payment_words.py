"""States and words of payments, as the model of the rules has them."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias


class State(StrEnum):
    """What a word of ``payment_status`` means; the names are those of the contract."""

    UNKNOWN = "UNKNOWN"
    PENDING = "PENDING"
    REQUIRES_ACTION = "REQUIRES_ACTION"
    PROCESSING = "PROCESSING"
    AUTHORIZED = "AUTHORIZED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    PAID = "PAID"
    PARTIALLY_REFUNDED = "PARTIALLY_REFUNDED"
    REFUNDED = "REFUNDED"
    DISPUTED = "DISPUTED"
    CHARGED_BACK = "CHARGED_BACK"
    RETURNED = "RETURNED"


class Reversal(StrEnum):
    """What a word takes back."""

    CONTEST = "contest"
    REFUND = "refund"


Words: TypeAlias = Mapping[str, State | Reversal]
"""The meaning of each word, by its ``plain`` form. Words that are missing are UNKNOWN."""

OPEN: Final = {State.PENDING, State.REQUIRES_ACTION, State.PROCESSING, State.AUTHORIZED}
ENDED: Final = {State.FAILED, State.CANCELLED, State.EXPIRED}
CONTESTED: Final = {State.DISPUTED, State.CHARGED_BACK}
SETTLED: Final = {
    *(State.PAID, State.PARTIALLY_REFUNDED, State.REFUNDED, State.RETURNED),
    *CONTESTED,
}

_CASE_AND_SPACING: Final = str.maketrans(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", "-_ \t\n\r\f\v"
)


def plain(text: str) -> str:
    """Return ``text`` as words and providers are compared: ``Partially-Refunded`` as one word."""
    return text.translate(_CASE_AND_SPACING)


_SOME_WORDS: Final[Mapping[State | Reversal, str]] = {
    State.PENDING: "pending open created unpaid requires_payment_method requires_confirmation",
    State.REQUIRES_ACTION: "requires_action redirect payer_action_required approved",
    State.PROCESSING: "processing complete received in_progress",
    State.AUTHORIZED: "authorized authorised requires_capture preauthorize accepted",
    State.FAILED: "failed declined denied refused rejected error",
    State.CANCELLED: "cancelled canceled voided void",
    State.EXPIRED: "expired timed_out offer_closed",
    State.PAID: "paid succeeded captured capture completed settled debit "
    "partially_captured part_captured partially_paid",
    State.PARTIALLY_REFUNDED: "partially_refunded",
    State.REFUNDED: "refunded refund",
    State.DISPUTED: "disputed needs_response warning_needs_response notification_of_chargeback",
    State.CHARGED_BACK: "charged_back chargeback second_chargeback lost",
    State.RETURNED: "returned capture_failed",
    Reversal.CONTEST: "dispute_won warning_closed chargeback_reversed chargeback_reversal",
    Reversal.REFUND: "refund_failed",
}
DEFAULT_WORDS: Final[Words] = MappingProxyType(
    {plain(word): meaning for meaning, words in _SOME_WORDS.items() for word in words.split()}
)
"""Enough for tests of the rules."""
