"""Whether the ids of new events come after those that there are.

Logical replication copies rows and no sequences: a replica that becomes the primary would assign
the ids of events anew.
"""

from typing import Final

from persistence.diagnostics.connection import Connection, row
from persistence.diagnostics.fault import Fault, all_of

_TABLES: Final = ("order_payment_events", "refused_payment_events")

_SEQUENCE: Final = """
    SELECT sequence::text, has_sequence_privilege(sequence, 'SELECT, USAGE')
    FROM (SELECT pg_get_serial_sequence($1, 'id')::regclass AS sequence) each
    WHERE sequence IS NOT NULL
"""


_COMPARED: Final = """
    SELECT max(id), coalesce(pg_sequence_last_value('{sequence}'), 0)
    FROM (SELECT id FROM {table} ORDER BY transaction_id DESC LIMIT 1000) newest
"""
"""Reads the last events by transaction, for which there is an index."""

_SET: Final = "SELECT setval('{sequence}', max(id)) FROM {table};"


async def require_sequences(connection: Connection) -> str:
    """Raise Fault when a sequence is behind the ids of its table."""
    problems, hidden = [], []
    for table in _TABLES:
        found = await connection.fetchrow(_SEQUENCE, table)
        if found is None:  # not an identity any more
            continue
        sequence, is_visible = found
        if not is_visible:
            hidden.append(sequence)
            continue
        last, next_ = await row(connection, _COMPARED.format(table=table, sequence=sequence))
        if last is not None and last > next_:
            problems.append(
                (
                    f"{sequence} has come to {next_}, and {table} has events up to {last} at least:"
                    " new events would come before them",
                    f"As the owner: {_SET.format(table=table, sequence=sequence)}",
                )
            )
    if problems:
        raise Fault(*all_of(problems))
    if hidden:
        return f"not checked: the user may not read {', '.join(hidden)}"
    return "the ids of new events come after those that there are"
