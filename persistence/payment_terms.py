"""Terms of PyPika about the payment of an order, for the modules that assemble statements."""

from typing import Any

from pypika.terms import Term

from persistence import dialect as pg
from persistence.payment_states import CAPITALS, IGNORED


def normalized(text: Term) -> Any:
    """Return ``text`` as words and providers are compared: see ``payment_states.normalized``."""
    return pg.translate(text, CAPITALS + IGNORED, CAPITALS.lower())
