"""What depends on the words of payment statuses."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from persistence.diagnostics.connection import Connection
from persistence.diagnostics.fault import Fault
from persistence.payment_states import UNKNOWN, Meaning, PaymentState, normalized
from persistence.reclassification import applied_meanings
from persistence.session_names import digest_in
from persistence.status_words import StatusWords, changed_words
from persistence.status_words_file import section_of

_APPLY: Final = "Run `listings statuses apply`, once all processes of the service have these words"

_MAX_NAMED: Final = 5  # words in a message

_MAX_COUNTED: Final = 10_000
"""Orders of each kind that are looked at, the newest first."""

UNCLEAR: Final = """
    SELECT true, payment_status, count(*) FROM (
        SELECT payment_status FROM orders WHERE payment_state = 1
        ORDER BY created_at DESC LIMIT $1
    ) unknown GROUP BY payment_status
    UNION ALL
    SELECT false, payment_status, count(*) FROM (
        SELECT payment_status FROM orders
        WHERE payment_state IS NULL AND payment_status <> 'pending'
        ORDER BY payment_state DESC, created_at DESC LIMIT $1
    ) unclassified GROUP BY payment_status
"""
"""The SELECT of the words of orders that are UNKNOWN, or not classified, with how often they occur.

Each half reads the end of a range of the index of states. The second half sorts by
``payment_state``, too, which is null in all of its rows: without it, PostgreSQL would not read the
index in its order, but sort.
"""

_SESSIONS: Final = """
    SELECT application_name FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE '% words=%'
"""


async def check_applied(connection: Connection, words: StatusWords) -> str:
    """Raise Fault when orders are classified by other meanings than those of ``words``."""
    before = await applied_meanings(connection)
    if changed := changed_words(before, words.meanings):
        named = _listed(
            f"{word!r} ({_section(before, word)} -> {_section(words.meanings, word)})"
            for word in changed
        )
        raise Fault(f"orders are classified by other meanings of {named}", _APPLY)
    return f"orders are classified by this table, {words.digest}"


async def check_unknown_words(connection: Connection, words: StatusWords) -> str:
    """Return the words of orders that are in no table, with how often they occur.

    Words that ``words`` has as UNKNOWN are left out. Raises Fault for orders that are UNKNOWN
    although their word is in the table.
    """
    deliberate = {
        normalized(each.word)
        for each in words.entries()
        if each.meaning == PaymentState.UNKNOWN.name
    }
    unknown: Counter[str] = Counter()
    known: Counter[str] = Counter()
    for is_unknown, word, number in await connection.fetch(UNCLEAR, _MAX_COUNTED):
        if words.meaning(word) == UNKNOWN:
            if normalized(word) not in deliberate:
                unknown[word] += number
        elif is_unknown:
            known[word] += number
    if known.total():
        raise Fault(f"{_counted(known)} UNKNOWN, although the table has the words", _APPLY)
    if unknown:
        return (
            f"{_counted(unknown)} in no table. Give each word a meaning in the file that "
            "LISTINGS_PAYMENT_STATUSES names, UNKNOWN if it has none, then restart the service and "
            "run `listings statuses apply`"
        )
    return "no order has one"


async def check_processes(connection: Connection, words: StatusWords) -> str:
    """Raise Fault when processes of the service have other meanings than those of ``words``."""
    names = await connection.fetch(_SESSIONS)
    found = Counter(digest for (name,) in names if (digest := digest_in(name)) is not None)
    if not found:
        return "no process of the service is connected that shows its table"
    described = ", ".join(
        f"{number} with {digest}" for digest, number in sorted(found.items(), key=lambda i: -i[1])
    )
    if len(found) > 1:
        raise Fault(
            f"processes of the service have different tables: {described}; here it is "
            f"{words.digest}",
            "If no rolling deployment is under way, restart those that were forgotten",
        )
    if words.digest not in found:
        raise Fault(
            f"the service has another table than this environment: {described}; here it is "
            f"{words.digest}",
            "Restart the service, if the file has changed since its start; else let "
            "LISTINGS_PAYMENT_STATUSES name the same file here",
        )
    return f"all processes of the service have this table: {described}"


def _section(meanings: Mapping[str, Meaning], word: str) -> str:
    return section_of(meanings.get(word, UNKNOWN))


def _counted(words: Counter[str]) -> str:
    """Return "orders with 'piad' (2), 'on hold' (1) are", for messages."""
    # repr(), since a word may have any characters, also those that control a terminal.
    counts = (
        f"{word!r} ({number}{' or more' if number >= _MAX_COUNTED else ''})"
        for word, number in sorted(words.items(), key=lambda item: (-item[1], item[0]))
    )
    return f"orders with {_listed(counts)} are"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = len(every) - _MAX_NAMED
    return ", ".join(every[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
