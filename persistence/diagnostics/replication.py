"""What a commit waits for: one server, synchronous or asynchronous replication.

https://www.postgresql.org/docs/current/warm-standby.html
"""

from typing import Final

from persistence.diagnostics.connection import Connection, row
from persistence.diagnostics.fault import AS_SUPERUSER, Fault

_PAGE: Final = 'docs/operations.md, "What an acknowledgement is worth"'

_SETTINGS: Final = """
    SELECT current_setting('synchronous_standby_names'), current_setting('synchronous_commit'),
        pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
"""

# Without pg_read_all_stats, the columns of other users are null. Base backups and logical
# replication are no standbys.
_STANDBYS: Final = """
    SELECT application_name, state, sync_state,
        pg_size_pretty(CASE WHEN NOT pg_is_in_recovery()
            THEN pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn) END)
    FROM pg_stat_replication
    WHERE (state IS NULL OR state IN ('catchup', 'streaming'))
    AND pid NOT IN (
        SELECT active_pid FROM pg_replication_slots
        WHERE slot_type = 'logical' AND active_pid IS NOT NULL
    )
    ORDER BY application_name
"""

_WORTH: Final = {
    "remote_apply": "is on the disk of a standby, too, and visible there",
    "on": "is on the disk of a standby, too",
    "remote_write": "has reached a standby, but perhaps not its disk",
}


async def check_replication(connection: Connection) -> str:
    """Return which kind of replication there is, and what an acknowledged update survives by it.

    Raises Fault when commits wait for a standby and none is connected.
    """
    waited_for, commit, sees_all = await row(connection, _SETTINGS)
    standbys = await connection.fetch(_STANDBYS)
    number = f"{len(standbys)} standby{'' if len(standbys) == 1 else 's'}"
    if waited_for and commit in _WORTH:
        if not standbys:
            raise Fault(
                f"commits wait for synchronous_standby_names = '{waited_for}', and no standby is "
                "connected",
                f"Start a standby, or, to go on without one, {AS_SUPERUSER}: ALTER SYSTEM SET "
                "synchronous_standby_names = ''; SELECT pg_reload_conf();",
            )
        text = (
            f"synchronous ({waited_for}), {number} connected: an acknowledged update "
            f"{_WORTH[commit]}"
        )
    elif standbys:
        text = (
            f"asynchronous, {number} connected: a fail-over loses the updates that were "
            "acknowledged and had not reached the standby"
        )
    else:
        text = (
            "one server, as far as PostgreSQL shows: an acknowledged update is on its disk, and on "
            "no other"
        )
    if standbys and sees_all:
        text += "; " + ", ".join(
            f"{name} ({state}, {how}, {behind} behind)" for name, state, how, behind in standbys
        )
    elif standbys:
        text += (
            "; how far behind they are is shown to members of pg_monitor, "
            "which the user of the service need not be"
        )
    return f"{text}. See {_PAGE}"
