"""The payment statuses that are known, and which may follow which.

Providers deliver their events late, twice and out of order. A move that only a late event would
make, as from paid back to pending, is refused; one that skips a step, because the event for that
step is still on its way, is not. A status that does not stand here is neither guarded nor refused:
providers invent words.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

# The provider has yet to decide.
OPEN: Final = ("pending", "processing", "requires_action", "authorized")

# This attempt has come to nothing; the customer may take another card.
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


_REFUSING: Final = {
    status: [each for each, next_ones in MOVES.items() if status not in (each, *next_ones)]
    for status in MOVES
}


def refusing(status: str) -> Sequence[str]:
    """Return the statuses that may not become ``status``; none, when it is not a known one."""
    return _REFUSING.get(status, ())


def allowed_from(status: str) -> list[str]:
    """Return the other statuses that the known ``status`` may become."""
    return [each for each in MOVES[status] if each != status]
