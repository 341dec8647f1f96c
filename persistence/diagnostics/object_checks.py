"""Compares the tables, indexes, triggers and functions of a database with those of ``objects``.

An index or a trigger is known by what it does, not by its name: it may have been built anew.
"""

import re
from hashlib import md5
from typing import Final, NamedTuple

from persistence.diagnostics.connection import Connection
from persistence.diagnostics.fault import Advice, Fault, all_of
from persistence.diagnostics.migrations import newer_migrations
from persistence.diagnostics.objects import (
    FUNCTIONS,
    INDEXES,
    TABLES,
    TRIGGERS,
    Function,
    Index,
    Trigger,
)
from persistence.diagnostics.setting_places import places

_Problem = tuple[str, str]

_FIND_TABLES: Final = """
    SELECT name FROM unnest($1::text[]) name WHERE to_regclass(name) IS NOT NULL
"""

# An index that is deferrable does not serve ON CONFLICT. indnullsnotdistinct is of PostgreSQL 15.
# What is being built on a table is shown to its owner and to members of pg_read_all_stats.
_FIND_INDEXES: Final = """
    SELECT name, indexrelid::regclass::text, indisvalid AND indisready AND indislive,
        indisunique AND indimmediate
            AND NOT coalesce((to_jsonb(pg_index) ->> 'indnullsnotdistinct')::boolean, false),
        (
            SELECT string_agg(pg_get_indexdef(indexrelid, number, true), ', ' ORDER BY number)
            FROM generate_series(1, indnkeyatts) number
        ),
        coalesce(pg_get_expr(indpred, indrelid, true), ''),
        EXISTS (
            SELECT FROM pg_stat_progress_create_index
            WHERE datname = current_database() AND (relid = indrelid OR relid IS NULL)
        )
    FROM unnest($1::text[]) name JOIN pg_index ON indrelid = to_regclass(name)
    ORDER BY 1, 2
"""

_FIND_TRIGGERS: Final = """
    SELECT name, tgname, tgtype,
        CASE WHEN pronamespace = relnamespace THEN proname ELSE '' END,
        coalesce(substring(
            pg_get_triggerdef(pg_trigger.oid, true) FROM ' WHEN [(](.*)[)] EXECUTE FUNCTION '
        ), ''),
        tgattr::text <> '', tgenabled::text, quote_ident(tgname)
    FROM unnest($1::text[]) name
    JOIN pg_trigger ON tgrelid = to_regclass(name)
    JOIN pg_class ON pg_class.oid = tgrelid
    JOIN pg_proc ON pg_proc.oid = tgfoid
    WHERE NOT tgisinternal
    ORDER BY 1, 2
"""

_FIND_FUNCTIONS: Final = """
    SELECT signature, prosecdef, prosrc, quote_ident(nspname),
        coalesce(proconfig::text, '') LIKE '%search_path=pg\\_catalog%'
    FROM unnest($1::text[]) signature
    JOIN pg_proc ON pg_proc.oid = to_regprocedure(signature)
    JOIN pg_namespace ON pg_namespace.oid = pronamespace
"""

# Other users' sessions, by their own settings: https://www.postgresql.org/docs/current/sql-set.html
_SILENT_SESSIONS: Final = """
    SELECT concat_ws(
        ' IN ', 'ALTER ROLE ' || CASE setrole WHEN 0 THEN 'ALL' ELSE setrole::regrole::text END,
        CASE WHEN setdatabase <> 0 THEN format('DATABASE %I', current_database()) END
    )
    FROM pg_db_role_setting
    WHERE 'session_replication_role=replica' = ANY (setconfig)
    AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
"""

_REBUILT: Final = ("_ccnew", "_ccold")
"""What REINDEX CONCURRENTLY appends to the name of an index, before a number if there are several.

https://www.postgresql.org/docs/current/sql-reindex.html#SQL-REINDEX-CONCURRENTLY
"""

_TABLE_NAMES: Final = "|".join(TABLES)


class _FoundIndex(NamedTuple):
    table: str
    name: str
    is_valid: bool
    is_unique: bool
    columns: str
    predicate: str
    is_building: bool

    def has_entries_of(self, index: Index) -> bool:
        """Return whether it has the same entries; a unique one may also have more."""
        predicates = (index.predicate, "") if index.risk else (index.predicate,)
        return (self.table, self.columns) == (index.table, index.columns) and (
            self.predicate in predicates
        )

    def replaces(self, index: Index) -> bool:
        return self.has_entries_of(index) and (self.is_unique or not index.risk)


class _FoundTrigger(NamedTuple):
    table: str
    name: str
    type: int
    function: str
    condition: str
    is_of_columns: bool
    enabled: str
    quoted: str

    def replaces(self, trigger: Trigger) -> bool:
        return not self.is_of_columns and (
            (self.table, self.type, self.function, self.condition)
            == (trigger.table, trigger.type, trigger.function, trigger.condition)
        )


class _FoundFunction(NamedTuple):
    signature: str
    is_security_definer: bool
    body: str
    schema: str
    """As PostgreSQL quotes it."""
    has_search_path: bool

    @property
    def digest(self) -> str:
        """That of ``Function``: names of tables stand without the schema, and nothing else does."""
        # The name of a schema may also be that of a variable, or the first part of a setting's.
        qualified = rf'(?<![\w$."]){re.escape(self.schema)}\.(?=(?:{_TABLE_NAMES})\b)'
        body = re.sub(qualified, "", self.body)
        return md5(body.encode(), usedforsecurity=False).hexdigest()


async def require_objects(connection: Connection) -> str:
    """Raise Fault when something is missing or disabled that a promise of the service rests on.

    Of a newer version's database, nothing is known, and nothing is checked.
    """
    if await newer_migrations(connection):
        return "those of a newer version, which are not checked"
    tables = [name for (name,) in await connection.fetch(_FIND_TABLES, TABLES)]
    problems = [
        (f"table {name} is missing", "Restore it from a backup.")
        for name in TABLES
        if name not in tables
    ]
    problems += _of_functions(
        [_FoundFunction(*found) for found in await connection.fetch(_FIND_FUNCTIONS, _SIGNATURES)]
    )
    unique = [index for index in INDEXES if index.risk and index.table in tables]
    problems += _of_indexes(unique, await _indexes(connection))
    found = await _triggers(connection)
    if _are_silenced(found):
        problems += await _of_silent_session(connection)
    problems += _of_triggers([each for each in TRIGGERS if each.table in tables], found)
    if problems:
        raise Fault(*all_of(problems))
    return "all tables, unique indexes, triggers and functions that the service rests on are there"


async def check_objects(connection: Connection) -> str:
    """Raise Fault as ``require_objects``, also for other users; Advice for what costs time."""
    if newer := await newer_migrations(connection):
        raise Advice(
            f"nothing was checked, since this version does not know the objects of {newer[-1]}",
            "Run `listings doctor` of the version that it is of",
        )
    text = await require_objects(connection)
    silent = await connection.fetch(_SILENT_SESSIONS)
    if silent and _are_silenced(await _triggers(connection)):
        raise Fault(
            "session_replication_role is replica for some users, whose changes of payments are "
            "not in the history",
            "As a superuser: "
            + " ".join(f"{altered} RESET session_replication_role;" for (altered,) in silent),
        )
    indexes = await _indexes(connection)
    advice = _of_indexes([index for index in INDEXES if not index.risk], indexes)
    advice += _of_leftovers(indexes)
    if advice:
        raise Advice(*all_of(advice))
    return f"{text}, and the other indexes"


async def missing_indexes(connection: Connection) -> set[str]:
    """Return the names of those of ``INDEXES`` that are neither there nor replaced by a valid one.

    Raises what ``connection`` raises.
    """
    found = await _indexes(connection)
    return {index.name for index in INDEXES if not _is_there(index, found)}


_SIGNATURES: Final = [function.signature for function in FUNCTIONS]


async def _indexes(connection: Connection) -> list[_FoundIndex]:
    return [_FoundIndex(*found) for found in await connection.fetch(_FIND_INDEXES, TABLES)]


def _of_indexes(wanted: list[Index], found: list[_FoundIndex]) -> list[_Problem]:
    return [_of_index(index, found) for index in wanted if not _is_there(index, found)]


def _is_there(index: Index, found: list[_FoundIndex]) -> bool:
    return any(each.is_valid and each.replaces(index) for each in found)


def _of_index(index: Index, found: list[_FoundIndex]) -> _Problem:
    similar = [each for each in found if each.has_entries_of(index)]
    effect = index.risk or "reads are slow"
    if building := [each.name for each in similar if each.is_building and not each.is_valid]:
        return f"index {building[0]} is being built", "Wait until that has ended."
    if broken := [each.name for each in similar if each.replaces(index) and not _is_left(each)]:
        return (
            f"index {broken[0]} is invalid: {effect}",
            f"REINDEX INDEX CONCURRENTLY {broken[0]};",
        )
    of = f"on {index.table} ({index.columns})"
    if index.risk and similar:
        problem = f"no index {of} is unique: {effect}"
    else:
        problem = f"index {index.name} {of} is missing: {effect}"
    is_taken = index.name in (each.name for each in found)
    return problem, index.statement(f"{index.name}_2" if is_taken else index.name)


def _is_left(index: _FoundIndex) -> bool:
    """Return whether the name is one that REINDEX CONCURRENTLY gives."""
    return index.name.rstrip("0123456789").endswith(_REBUILT)


def _of_leftovers(found: list[_FoundIndex]) -> list[_Problem]:
    """Return the invalid indexes of which there is no use, also if they were valid."""
    return [
        (
            f"index {each.name} is invalid: it was left by an interrupted build, is not used, and "
            "makes writes slower",
            f"DROP INDEX CONCURRENTLY {each.name};",
        )
        for each in found
        if not (each.is_valid or each.is_building or _is_rebuilt(each, found))
    ]


def _is_rebuilt(broken: _FoundIndex, found: list[_FoundIndex]) -> bool:
    """Return whether ``_of_index`` tells to rebuild the index."""
    return not _is_left(broken) and any(
        broken.replaces(index) and not _is_there(index, found) for index in INDEXES
    )


def _of_triggers(wanted: list[Trigger], found: list[_FoundTrigger]) -> list[_Problem]:
    problems = []
    for trigger in wanted:
        similar = [each for each in found if each.replaces(trigger)]
        if any(each.enabled in "AO" for each in similar):
            continue
        if not similar:
            problem = (
                f"trigger {trigger.name} on {trigger.table} is missing, or is not the one of the "
                "migrations"
            )
            problems.append((f"{problem}: {trigger.risk}", trigger.statement))
            continue
        how = "disabled" if similar[0].enabled == "D" else "enabled for replicas only"
        problems.append(
            (
                f"trigger {similar[0].name} on {trigger.table} is {how}: {trigger.risk}",
                f"ALTER TABLE {trigger.table} ENABLE TRIGGER {similar[0].quoted};",
            )
        )
    return problems


async def _triggers(connection: Connection) -> list[_FoundTrigger]:
    return [_FoundTrigger(*found) for found in await connection.fetch(_FIND_TRIGGERS, TABLES)]


def _are_silenced(found: list[_FoundTrigger]) -> bool:
    """Return whether some do not fire where session_replication_role is replica.

    Those of a shop are left out.
    """
    return any(
        each.enabled == "O" and any(each.replaces(trigger) for trigger in TRIGGERS)
        for each in found
    )


async def _of_silent_session(connection: Connection) -> list[_Problem]:
    """Return what is wrong if session_replication_role is replica in this session."""
    found = await places(connection, "session_replication_role", ["replica"], "origin")
    if not found:
        return []
    where = " and ".join(place.described for place in found)
    return [
        (
            f"session_replication_role is replica ({where}): triggers do not fire, and the history "
            "of payments is not kept",
            " ".join(place.remedy for place in found),
        )
    ]


def _of_functions(found: list[_FoundFunction]) -> list[_Problem]:
    by_signature = {each.signature: each for each in found}
    faults = {
        function.signature: fault
        for function in FUNCTIONS
        if (fault := _fault(function, by_signature.get(function.signature)))
    }
    remedy = _restore(list(faults))
    return [(f"function {signature} {fault}", remedy) for signature, fault in faults.items()]


def _restore(signatures: list[str]) -> str:
    """Return how to have functions as the migrations make them.

    They are not rolled back for it: with their functions, they would drop tables and columns.
    """
    named = ", ".join(f"'{signature}'" for signature in signatures)
    statement = (
        f"SELECT pg_get_functiondef(each::regprocedure) || ';' FROM unnest(ARRAY[{named}]) each"  # noqa: S608 - names of this program
    )
    return (
        "Create an empty database, with a schema of the same name, and run `listings migrate up` "
        f"on it; run `{statement}` there; and then what that returns here, as the owner."
    )


def _fault(function: Function, found: _FoundFunction | None) -> str:
    if found is None:
        return "is missing"
    if found.digest != function.digest:
        return "is not the one that the migrations have made"
    if function.is_security_definer and not (found.is_security_definer and found.has_search_path):
        return "is not SECURITY DEFINER with search_path = pg_catalog, pg_temp"
    return ""
