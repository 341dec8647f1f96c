"""The states of a payment: what the words of ``payment_status`` mean.

The word is the provider's or the shop's, and is kept as it came; the state is one of a fixed set,
which the rules in ``persistence.decision`` know. ``persistence.status_words`` has the table from
words to states. Providers and words are compared by ``normalized``.
"""

from enum import Enum, IntEnum
from typing import Final, NamedTuple


class PaymentState(IntEnum):
    """The state of an order's payment, by the numbers of the contract and of the column.

    In the column, null stands for a state that is yet to be derived from the word.
    """

    UNKNOWN = 1
    """The word is in no table."""
    PENDING = 2
    REQUIRES_ACTION = 3
    PROCESSING = 4
    AUTHORIZED = 5
    FAILED = 6
    CANCELLED = 7
    EXPIRED = 8
    PAID = 9
    """All of the money has moved, or a part."""
    PARTIALLY_REFUNDED = 10
    REFUNDED = 11
    DISPUTED = 12
    CHARGED_BACK = 13
    RETURNED = 14
    """A direct debit that was paid, and came back."""


OPEN: Final = frozenset(
    {
        PaymentState.PENDING,
        PaymentState.REQUIRES_ACTION,
        PaymentState.PROCESSING,
        PaymentState.AUTHORIZED,
    }
)
"""The provider has not decided yet."""

ENDED: Final = frozenset({PaymentState.FAILED, PaymentState.CANCELLED, PaymentState.EXPIRED})
"""The attempt has ended without money; the customer may try again."""

SETTLED: Final = frozenset(PaymentState) - OPEN - ENDED - {PaymentState.UNKNOWN}
"""Money has moved."""

CONTESTED: Final = frozenset({PaymentState.DISPUTED, PaymentState.CHARGED_BACK})


class Reversal(Enum):
    """What a word takes back, so that the payment returns to the state that it had before."""

    CONTEST = "contest"
    """A dispute or a chargeback that ends in favour of the shop."""
    REFUND = "refund"
    """A refund that fails."""


class Meaning(NamedTuple):
    """What a word means: a state, or for a reversal, PAID and what it reverses."""

    state: PaymentState
    reverses: Reversal | None = None


UNKNOWN: Final = Meaning(PaymentState.UNKNOWN)
"""The meaning of a word that is in no table."""

UNPAID: Final = "pending"
"""The word of an order whose payment has not begun. Its state is PENDING in every table."""

IGNORED: Final = "-_ \t\n\r\f\v"
"""Characters that ``normalized`` leaves out."""

CAPITALS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Characters that ``normalized`` makes small."""

_NORMALIZED: Final = str.maketrans(CAPITALS, CAPITALS.lower(), IGNORED)


def normalized(text: str) -> str:
    """Return ``text`` as words and providers are compared: ``Partially-Refunded`` as one word.

    Without regard to case, white space, ``-`` and ``_``, all of ASCII, so that PostgreSQL compares
    the same way in every locale.
    """
    return text.translate(_NORMALIZED)
