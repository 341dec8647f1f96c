"""The pool's connections: a commit that PostgreSQL reports as not replicated is no success."""

from collections.abc import Mapping
from typing import Final

import asyncpg

# The function of PostgreSQL in which a commit waits for a synchronous standby, in each version:
# https://www.postgresql.org/docs/current/protocol-error-fields.html. It has two warnings, of a wait
# that was cancelled and of one that ends with the session. Their texts are translated.
_WAIT_FOR_STANDBY: Final = "SyncRepWaitForLSN"
_ROUTINE: Final = "R"


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection on which a statement fails whose commit may not have reached the standby."""

    __slots__ = ()

    def _process_log_message(self, fields: Mapping[str, str], last_query: str | None) -> None:
        """Have the statement under way fail when the wait for its standby was cut short.

        pg_cancel_backend ends the wait and not the commit: PostgreSQL then sends a warning, and
        the result as of any other statement. What asyncpg's protocol catches here becomes the
        result, once PostgreSQL is ready for the next statement.

        Works around asyncpg, which returns the result, and has warnings for listeners alone, who do
        not know the statement and are dropped whenever the pool takes a connection back.
        """
        if fields.get(_ROUTINE) == _WAIT_FOR_STANDBY:
            raise asyncpg.TransactionResolutionUnknownError("the commit may not be replicated")
        super()._process_log_message(fields, last_query)
