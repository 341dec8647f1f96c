"""Settings that decide whether an update that was acknowledged survives a crash.

https://www.postgresql.org/docs/current/runtime-config-wal.html
"""

from typing import Final

from persistence.diagnostics.connection import Connection, row
from persistence.diagnostics.fault import Advice, Fault, all_of
from persistence.diagnostics.objects import TABLES
from persistence.diagnostics.setting_places import places

_UNLOGGED: Final = """
    SELECT relname FROM unnest($1::text[]) name JOIN pg_class ON oid = to_regclass(name)
    WHERE relpersistence = 'u'
"""

_FSYNC: Final = "a crash of the machine may lose updates and destroy the database"
_FULL_PAGE_WRITES: Final = (
    "a crash of the machine may destroy pages, unless its file system never writes a part of a page"
)
_ASYNCHRONOUS: Final = "updates of the last moments before a crash are lost, though acknowledged"
_SILENT: Final = (
    "behind a pooler, an update is acknowledged though its wait for a standby was interrupted"
)
_LOCAL: Final = "an update is acknowledged before it is on a standby"


async def check_durability(connection: Connection) -> str:
    """Raise Fault when an update may be acknowledged that a crash loses."""
    unlogged = await connection.fetch(_UNLOGGED, TABLES)
    faults = [
        (
            f"table {table} is UNLOGGED: a crash empties it",
            f"ALTER TABLE {table} SET LOGGED;",
        )
        for (table,) in unlogged
    ]
    faults += await _set(connection, "fsync", ["off"], _FSYNC)
    faults += await _set(connection, "synchronous_commit", ["off"], _ASYNCHRONOUS)
    standbys, commit = await row(
        connection,
        "SELECT current_setting('synchronous_standby_names'),"
        " current_setting('synchronous_commit')",
    )
    if standbys:
        faults += await _set(connection, "synchronous_commit", ["local"], _LOCAL)
        faults += await _set(connection, "client_min_messages", ["error"], _SILENT, "notice")
    advice = await _set(connection, "full_page_writes", ["off"], _FULL_PAGE_WRITES)
    if faults:
        raise Fault(*all_of(faults + advice))
    if advice:
        raise Advice(*all_of(advice))
    return (
        f"fsync and full_page_writes are on, and synchronous_commit is {commit}: an update that is "
        "acknowledged survives a crash of the server"
    )


async def _set(
    connection: Connection, name: str, values: list[str], effect: str, right: str = "on"
) -> list[tuple[str, str]]:
    """Return the problem and the remedy of a setting that has one of ``values``."""
    found = await places(connection, name, values, right)
    if not found:
        return []
    where = " and ".join(place.described for place in found)
    problem = f"{name} is {values[0]} ({where}): {effect}"
    return [(problem, " ".join(place.remedy for place in found))]
