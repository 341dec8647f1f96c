"""The caller of an RPC, as a verified token describes it."""

from contextvars import ContextVar
from typing import Final, NamedTuple


class Principal(NamedTuple):
    """The caller and what it may do."""

    subject: str
    """The claim ``sub``, which is written to the log and to the history of payments."""

    permissions: frozenset[str]

    storefronts: frozenset[int] | None
    """The tenant scope: ids of the storefronts whose orders are visible; None for all."""

    expires_at: float
    """When the token expires, in seconds since 1970."""


current_principal: Final[ContextVar[Principal | None]] = ContextVar(
    "current_principal", default=None
)
"""The caller of the request that is being served; None where no token is required."""
