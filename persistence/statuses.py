"""The known payment statuses, and which of them may follow which.

Providers deliver events late, twice and out of order. A move that only a late event makes, as from
paid back to pending, is refused. A refund may be reported before ``paid``, whose event may still
arrive; a dispute may not, nor a chargeback before its dispute. Statuses that are not listed here
are not checked: providers use words of their own.

The rule is enforced in the WHERE of ``queries.update_payment``, which PostgreSQL evaluates on the
locked row.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

OPEN: Final = ("pending", "processing", "requires_action", "authorized")
"""The provider has not decided yet."""

# The attempt has failed; the customer may try again with another card.
_ENDED: Final = ("failed", "cancelled", "expired")

_UNSETTLED: Final = (*OPEN, *_ENDED)

MOVES: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    dict.fromkeys(_UNSETTLED, (*_UNSETTLED, "paid", "partially_refunded", "refunded"))
    | {
        "paid": ("partially_refunded", "refunded", "disputed"),
        "partially_refunded": ("refunded", "disputed"),
        "disputed": ("paid", "charged_back"),
        "refunded": (),
        "charged_back": (),
    }
)
"""What each known status may become, besides staying as it is."""

_DISALLOWED_BEFORE: Final = {
    status: [before for before, after in MOVES.items() if status not in (before, *after)]
    for status in MOVES
}


def disallowed_before(status: str) -> Sequence[str]:
    """Return the statuses that may not become ``status``; none when ``status`` is not known."""
    return _DISALLOWED_BEFORE.get(status, ())


def allowed_after(status: str) -> list[str]:
    """Return the other statuses that the known ``status`` may become."""
    return [each for each in MOVES[status] if each != status]
