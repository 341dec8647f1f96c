"""Terms of PyPika about the payment of an order, for the modules that assemble statements."""

from typing import Any, Final

from pypika.terms import Term

from persistence import dialect as pg
from persistence.payment_states import IGNORED

_CAPITALS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def normalized(text: Term) -> Any:
    """Return ``text`` as words and providers are compared: see ``payment_states.normalized``."""
    return pg.translate(text, _CAPITALS + IGNORED, _CAPITALS.lower())
