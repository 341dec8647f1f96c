"""Orders classified anew after the table of words has changed: ``listings statuses apply``.

``status_words`` has the meanings by which orders were classified the last time. What follows for an
order depends on its state, and on whether the meaning of its word differs from that:

- No state yet, and the payment has begun: it gets the state of its word. A reversal means PAID, as
  everywhere for a word set by hand. Nothing moves: this is the state that it was listed with.
- UNKNOWN, and the table has its word now: it gets the state to which the word leads an order that
  is not settled. So a reversal means PAID, and RETURNED means FAILED.
- Any other state, and its word means something else now: it gets the state to which the word leads
  from the present one, be that UNKNOWN; RETURNED means FAILED unless the order is settled. If the
  word was a reversal, or is one now, the order keeps its state: it came from the state before.
- Else it keeps its state, whatever its word says.

``payment_event_time`` stays, as the time of the event that brought the word, but a plain PAID keeps
none. ``contested_from`` stays within DISPUTED and CHARGED_BACK, and else is null: the state that
the word has been taken for is not one that the order had before a dispute. The version, and with it
the etag, moves with each order that is written; ``payment_status_since`` where an order had another
state; ``updated_at`` never.

Where an order had another state, the trigger adds an event to the history, with the same payment
before and after, no request, and the role of the operator. Otherwise the states of two events would
not join, watchers would not learn that a payment counts as paid now, and nothing would tell why.

It is done in batches by id, each a short transaction that locks its orders first, in the order in
which the service does, and then decides by what they have: what the service writes meanwhile is not
overwritten. While it runs, the words that have changed stand in ``status_words`` as UNKNOWN, which
is no meaning of a table: after an interruption, the next run takes them as changed in any case,
even if the table is another one by then.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import asyncpg

from persistence.decision import target
from persistence.errors import MaintenanceError
from persistence.maintenance import Connection, owner_session
from persistence.payment_states import (
    CAPITALS,
    CONTESTED,
    IGNORED,
    UNKNOWN,
    Meaning,
    PaymentState,
    Reversal,
    normalized,
)
from persistence.status_words import StatusWords, changed_words

_BATCH: Final = 1_000
"""Ids in one transaction."""

# A batch that waits for a lock holds others, for which payments wait. So it waits shortly, and is
# tried again without them.
_LOCK_TIMEOUT: Final = "200ms"
_RETRY_SECONDS: Final = 0.2
_MAX_TRIES: Final = 50

_ADVISORY_LOCK: Final = 0x737461747573  # "status" in ASCII, as a 64-bit key

_BATCH_END: Final = """
    SELECT max(id) FROM (SELECT id FROM orders WHERE id > $1 ORDER BY id LIMIT $2) batch
"""
# $3 are the words of the table, for orders that are UNKNOWN; $4 those with another meaning.
_SELECT_BATCH: Final = """
    SELECT id, payment_status, payment_state FROM orders
    WHERE id > $1 AND id <= $2 AND CASE
        WHEN payment_state IS NULL THEN payment_status <> 'pending' OR num_nonnulls(
            payment_provider,
            payment_session_id,
            payment_intent_id,
            payment_idempotency_key,
            payment_transaction_id
        ) > 0
        WHEN payment_state = 1 THEN translate(payment_status, $5, $6) = ANY ($3::text[])
        ELSE translate(payment_status, $5, $6) = ANY ($4::text[])
    END
    ORDER BY id FOR NO KEY UPDATE
"""
_UPDATE: Final = """
    UPDATE orders SET
        payment_version = pg_current_xact_id(),
        payment_state = anew.state,
        contested_from = CASE WHEN anew.is_contested THEN contested_from END,
        payment_event_time = CASE WHEN anew.keeps_time THEN payment_event_time END,
        payment_status_since = CASE WHEN payment_state IS NULL
            THEN coalesce(payment_status_since, updated_at) ELSE clock_timestamp() END
    FROM unnest($1::bigint[], $2::smallint[], $3::boolean[], $4::boolean[])
        anew (id, state, is_contested, keeps_time)
    WHERE orders.id = anew.id
"""


class Reclassification(NamedTuple):
    """What was done."""

    moves: Mapping[tuple[PaymentState | None, PaymentState], int]
    """How many orders came from which state to which; from None, if they had none yet."""
    words: Mapping[str, tuple[Meaning, Meaning]]
    """The normalized words whose meaning has changed: before and after."""


async def applied_meanings(connection: Connection) -> dict[str, Meaning]:
    """Return the meanings by which orders were classified the last time, by normalized word.

    UNKNOWN stands for a word whose orders were not all classified: a run was interrupted.
    """
    rows = await connection.fetch("SELECT word, state, reverses FROM status_words")
    return {
        word: Meaning(PaymentState(state), None if reverses is None else Reversal(reverses))
        for word, state, reverses in rows
    }


def state_anew(
    now: PaymentState | None, meaning: Meaning, *, is_other_meaning: bool
) -> PaymentState:
    """Return the state of an order whose word has this ``meaning``, by the rules of this module.

    ``is_other_meaning`` says whether it meant something else before, neither of them a reversal.
    """
    if now is None:
        return meaning.state
    if now is PaymentState.UNKNOWN or is_other_meaning:
        return target(now, meaning, None)
    return now


async def reclassify(url: str, words: StatusWords) -> Reclassification:
    """Classify orders anew by ``words``, and make these the meanings of the last time.

    ``url`` is a libpq URL of the owner. It may run while the service does, and again after an
    interruption. Raises MaintenanceError or InvalidDatabaseURL; then batches may be done already.
    """
    async with owner_session(url) as connection, _alone(connection):
        before = await applied_meanings(connection)
        changed = changed_words(before, words.meanings)
        meanings = {
            word: (before.get(word, UNKNOWN), words.meanings.get(word, UNKNOWN)) for word in changed
        }
        if changed:
            await _announce(connection, meanings)
        moved_words = [
            word for word, both in meanings.items() if all(each.reverses is None for each in both)
        ]
        moves: Counter[tuple[PaymentState | None, PaymentState]] = Counter()
        last = 0
        while (upto := await connection.fetchval(_BATCH_END, last, _BATCH)) is not None:
            moves += await _classify(connection, last, upto, words, frozenset(moved_words))
            last = upto
        if changed:
            await _replace(connection, words)
    return Reclassification(moves, meanings)


@asynccontextmanager
async def _alone(connection: Connection) -> AsyncIterator[None]:
    """Hold a lock that the end of the session releases. Raises MaintenanceError if it is taken."""
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _ADVISORY_LOCK):
        raise MaintenanceError("another `listings statuses apply` is running; wait for its end")
    yield


async def _announce(
    connection: Connection, meanings: Mapping[str, tuple[Meaning, Meaning]]
) -> None:
    """Have the words in ``status_words`` as ones that are being changed."""
    await connection.execute(
        """
        INSERT INTO status_words (word, state, reverses)
        SELECT word, $2, reverses FROM unnest($1::text[], $3::text[]) changed (word, reverses)
        ON CONFLICT (word) DO UPDATE SET state = excluded.state
        """,
        list(meanings),
        PaymentState.UNKNOWN,
        [before.reverses and before.reverses.value for before, _ in meanings.values()],
    )


async def _classify(
    connection: Connection, first: int, last: int, words: StatusWords, moved_words: Collection[str]
) -> Counter[tuple[PaymentState | None, PaymentState]]:
    """Classify the orders with ids after ``first`` up to ``last``, and return their moves."""
    for _ in range(_MAX_TRIES):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                return await _classify_locked(connection, first, last, words, moved_words)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            await asyncio.sleep(_RETRY_SECONDS)
    raise MaintenanceError(
        f"other transactions held a lock on an order from {first + 1} to {last} for too long; "
        "nothing was lost, run it again when they have ended"
    )


async def _classify_locked(
    connection: Connection, first: int, last: int, words: StatusWords, moved_words: Collection[str]
) -> Counter[tuple[PaymentState | None, PaymentState]]:
    orders = await connection.fetch(
        _SELECT_BATCH,
        first,
        last,
        list(words.meanings),
        list(moved_words),
        CAPITALS + IGNORED,
        CAPITALS.lower(),
    )
    moves: Counter[tuple[PaymentState | None, PaymentState]] = Counter()
    anew: list[tuple[int, PaymentState, bool, bool]] = []
    for order_id, word, number in orders:
        now = None if number is None else PaymentState(number)
        meaning = words.meaning(word)
        new = state_anew(now, meaning, is_other_meaning=normalized(word) in moved_words)
        if new is not now:
            moves[now, new] += 1
            is_plain_paid = new is PaymentState.PAID and meaning.reverses is None
            anew.append((order_id, new, new in CONTESTED, not is_plain_paid))
    if anew:
        await connection.execute(_UPDATE, *zip(*anew, strict=True))
    return moves


async def _replace(connection: Connection, words: StatusWords) -> None:
    """Make ``words`` the meanings of the last time."""
    async with connection.transaction():
        await connection.execute(
            "DELETE FROM status_words WHERE word <> ALL ($1::text[])", list(words.meanings)
        )
        await connection.execute(
            """
            INSERT INTO status_words (word, state, reverses)
            SELECT * FROM unnest($1::text[], $2::smallint[], $3::text[])
            ON CONFLICT (word) DO UPDATE SET state = excluded.state, reverses = excluded.reverses
            """,
            list(words.meanings),
            [meaning.state for meaning in words.meanings.values()],
            [meaning.reverses and meaning.reverses.value for meaning in words.meanings.values()],
        )
