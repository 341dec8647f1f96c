"""The caller of an RPC, as a verified token has it."""

from contextvars import ContextVar
from typing import Final, NamedTuple


class Principal(NamedTuple):
    """Who calls, and what it may do."""

    subject: str
    """The claim ``sub``: it stands in the log and in the history of payments."""

    permissions: frozenset[str]

    storefronts: frozenset[int] | None
    """The storefronts whose orders there are for this caller; None for all."""

    expires_at: float
    """When the token ends, in seconds since 1970."""


principal: Final[ContextVar[Principal | None]] = ContextVar("principal", default=None)
"""The caller of the request that is being served; None where nobody has to say who it is."""
