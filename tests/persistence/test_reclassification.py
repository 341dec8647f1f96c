"""``listings statuses apply``: which state each order has afterwards, also while others write."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise, product
from pathlib import Path
from random import Random
from typing import Any, Final

import psycopg
import pytest

from persistence import errors, reclassification
from persistence.errors import MaintenanceError
from persistence.models import Origin, PaymentUpdate
from persistence.orders import OrderRepository
from persistence.payment_states import CONTESTED, SETTLED, PaymentState, normalized
from persistence.reclassification import reclassify
from persistence.status_words import StatusWords
from persistence.status_words_file import SECTIONS
from tests.support import databases
from tests.support.history import connect, events
from tests.support.orders import Orders
from tests.support.waiting import eventually_async, lock_waits

pytestmark = pytest.mark.anyio

REVERSALS: Final = ("DISPUTE_REVERSED", "REFUND_REVERSED")
UNKNOWN, PROCESSING, FAILED, PAID, RETURNED = (
    PaymentState[name] for name in ("UNKNOWN", "PROCESSING", "FAILED", "PAID", "RETURNED")
)
AGES_AGO: Final = datetime(2026, 1, 1, tzinfo=UTC)
EVENT_TIME: Final = datetime(2026, 1, 2, tzinfo=UTC)


def table(path: Path, words: Mapping[str, str]) -> StatusWords:
    """Return the table with ``words`` over the built-in ones: the section by word."""
    groups = (f"[[{section}.shop]]\nwords = ['{word}']\n" for word, section in words.items())
    path.write_text("".join(groups))
    return StatusWords.read(path)


def state_expected(now: PaymentState | None, before: str, after: str) -> PaymentState:
    """Return the state of an order whose word has changed from one section to another."""
    plain = PAID if after in REVERSALS else PaymentState[after]
    if now is None:
        return plain
    if now is not UNKNOWN and (before == after or {before, after} & {*REVERSALS}):
        return now
    return FAILED if plain is RETURNED and now not in SETTLED else plain


async def test_the_state_of_each_order_with_each_change_of_its_word(
    database_url: str, tmp_path: Path
) -> None:
    pairs = {f"w{n}": pair for n, pair in enumerate(product(SECTIONS, SECTIONS))}
    words = tmp_path / "words.toml"
    before = table(words, {word: pair[0] for word, pair in pairs.items()})
    after = table(words, {word: pair[1] for word, pair in pairs.items()})
    # Spelled differently, as words may be.
    cases = [(f" {word.upper()}_", state) for word in pairs for state in (None, *PaymentState)]
    await reclassify(database_url, before)
    rows_before = insert(database_url, cases)
    done = await reclassify(database_url, after)
    assert done.words.keys() == {word for word, pair in pairs.items() if len({*pair}) == 2}

    moves: dict[Any, int] = {}
    with connect(database_url) as connection:
        rows = connection.execute("SELECT * FROM orders ORDER BY id").fetchall()
    recorded = {event["order_id"]: event for event in events(database_url)}
    for old, row, (word, now) in zip(rows_before, rows, cases, strict=True):
        pair = pairs[normalized(word)]
        new = state_expected(now, *pair)
        expected = dict(old)
        if new != now:
            moves[now, new] = moves.get((now, new), 0) + 1
            assert row["payment_version"] != old["payment_version"]
            expected |= {"payment_state": new, "payment_version": row["payment_version"]}
            if new is PAID and pair[1] not in REVERSALS:
                expected["payment_event_time"] = None
            if new not in CONTESTED:
                expected["contested_from"] = None
        if now not in (None, new):
            assert row["payment_status_since"] > old["updated_at"]
            expected["payment_status_since"] = row["payment_status_since"]
            event = recorded.pop(row["id"])
            assert (event["payment_state_before"], event["payment_state_after"]) == (now, new)
            assert event["payment_status_before"] == event["payment_status_after"] == word
            assert (event["request_id"], event["payment_event_time"]) == (None, None)
        assert row == expected, (now, pair)
    assert done.moves == moves
    # What was cleared of a time beside it is in the history, too.
    assert {event["payment_state_before"] for event in recorded.values()} <= {None}

    again = await reclassify(database_url, after)
    assert (again.words, again.moves) == ({}, {})


def insert(url: str, cases: Iterable[tuple[str, PaymentState | None]]) -> list[dict[str, Any]]:
    """Insert an order with a word and a state for each of ``cases``, and return their rows."""
    rows = [
        (f"C-{n}", word, state, PAID if state in CONTESTED else None, EVENT_TIME, *[AGES_AGO] * 3)
        for n, (word, state) in enumerate(cases)
    ]
    with connect(url) as connection:
        connection.execute("SET session_replication_role = replica")  # without a history
        connection.cursor().executemany(
            "INSERT INTO orders (order_number, payment_status, payment_state, contested_from,"
            " payment_event_time, payment_status_since, created_at, updated_at, buyer_id,"
            " storefront_id, currency, subtotal_amount, shipping_amount, tax_amount,"
            " discount_amount, total_amount)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 1, 1, 'EUR', 1, 0, 0, 0, 1)",
            rows,
        )
        return connection.execute("SELECT * FROM orders ORDER BY id").fetchall()


async def test_a_payment_that_has_not_begun_is_left_alone(
    database_url: str, tmp_path: Path
) -> None:
    orders = Orders(database_url)
    fresh, begun, older = orders.add(), orders.add(), orders.add()
    orders.change(begun, payment_intent_id="pi_1")
    with connect(database_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "UPDATE orders SET payment_status = 'paid', payment_status_since = NULL WHERE id = %s",
            (older,),
        )
    untouched, since = orders.row(fresh), orders.row(begun)["payment_status_since"]
    done = await reclassify(database_url, table(tmp_path / "words", {"bezahlt": "PAID"}))
    assert done.moves == {(None, PaymentState.PENDING): 1, (None, PAID): 1}
    assert orders.row(fresh) == untouched
    assert orders.row(begun)["payment_status_since"] == since
    assert orders.row(older)["payment_status_since"] == orders.row(older)["updated_at"]


async def test_an_order_that_changes_meanwhile_keeps_what_was_written(
    database_url: str, tmp_path: Path
) -> None:
    orders = Orders(database_url)
    with_new, without = (
        orders.add(payment_status="bezahlt", payment_state=UNKNOWN) for _ in range(2)
    )
    words = table(tmp_path / "words", {"bezahlt": "PAID"})
    with psycopg.connect(database_url) as writer:
        writer.execute("UPDATE orders SET payment_status = 'failed' WHERE id = %s", (with_new,))
        applied = asyncio.create_task(reclassify(database_url, words))
        await eventually_async(lambda: lock_waits(database_url) > 0)
    done = await applied
    assert done.moves == {(None, FAILED): 1, (UNKNOWN, PAID): 1}
    assert orders.row(with_new)["payment_state"] == FAILED
    assert orders.row(without)["payment_state"] == PAID


async def test_a_batch_that_waits_for_a_lock_lets_the_others_be_paid(
    database_url: str, tmp_path: Path
) -> None:
    orders = Orders(database_url)
    free, locked = (orders.add(payment_status="bezahlt", payment_state=UNKNOWN) for _ in range(2))
    words = table(tmp_path / "words", {"bezahlt": "PAID"})
    async with databases.pool(database_url) as database:
        with orders.locked(locked):
            applied = asyncio.create_task(reclassify(database_url, words))
            await eventually_async(lambda: lock_waits(database_url) > 0)
            # Within the time-out of a statement, which is longer than that for the lock.
            await OrderRepository(database, words=words).update_payment_info(
                free, PaymentUpdate(payment_status="refunded"), Origin("r")
            )
    await applied
    assert orders.row(free)["payment_state"] == PaymentState.REFUNDED
    assert orders.row(locked)["payment_state"] == PAID


async def test_after_an_interruption_another_table_counts(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = Orders(database_url)
    at_first = table(tmp_path / "words", {"teils": "PROCESSING"})
    await reclassify(database_url, at_first)
    first, second = (orders.add(payment_status="teils", payment_state=PROCESSING) for _ in range(2))
    with monkeypatch.context() as patched, orders.locked(second):
        patched.setattr(reclassification, "_BATCH", 1)
        patched.setattr(reclassification, "_MAX_TRIES", 1)
        with pytest.raises(MaintenanceError, match=f"an order from {second} to {second}"):
            await reclassify(database_url, table(tmp_path / "words", {"teils": "PAID"}))
    assert [orders.row(each)["payment_state"] for each in (first, second)] == [PAID, PROCESSING]
    done = await reclassify(database_url, at_first)
    assert done.moves == {(PAID, PROCESSING): 1}
    assert orders.row(first)["payment_state"] == PROCESSING


async def test_one_run_at_a_time(database_url: str, tmp_path: Path) -> None:
    orders = Orders(database_url)
    locked = orders.add(payment_status="bezahlt", payment_state=UNKNOWN)
    words = table(tmp_path / "words", {"bezahlt": "PAID"})
    with orders.locked(locked):
        applied = asyncio.create_task(reclassify(database_url, words))
        await eventually_async(lambda: lock_waits(database_url) > 0)
        with pytest.raises(MaintenanceError, match="another `listings statuses apply`"):
            await reclassify(database_url, words)
    assert (await applied).moves == {(UNKNOWN, PAID): 1}


async def test_who_may_not_and_what_is_missing(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    words = table(tmp_path / "words", {"bezahlt": "PAID"})
    with pytest.raises(MaintenanceError, match="LISTINGS_MIGRATION_DATABASE_URL"):
        await reclassify(databases.for_service(database_url), words)
    with pytest.raises(MaintenanceError, match="listings migrate up"):
        await reclassify(empty_database_url, words)


@pytest.mark.parametrize("seed", range(3))
async def test_while_the_service_writes(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Each order has the state of its last word, and its history joins without a gap."""
    monkeypatch.setattr(reclassification, "_BATCH", 5)
    before = table(tmp_path / "words", {"a": "PENDING", "b": "PAID", "c": "DISPUTED"})
    after = table(tmp_path / "words", {"a": "PAID", "b": "PROCESSING", "d": "REFUNDED"})
    statuses = ("a", "b", "c", "d", "pending", "paid", "refunded", "needs_response", "d ", "A")
    await reclassify(database_url, before)
    orders, random = Orders(database_url), Random(seed)
    order_ids = [orders.add() for _ in range(60)]

    async def write(repository: OrderRepository) -> None:
        update = PaymentUpdate(payment_status=random.choice(statuses))
        with suppress(errors.PaymentEventRefused):
            await repository.update_payment_info(random.choice(order_ids), update, Origin("r"))
        if random.random() < 0.05:  # by hand, or by a worker of the version before
            word, order_id = random.choice(statuses), random.choice(order_ids)
            await asyncio.to_thread(orders.change, order_id, payment_status=word)

    async def keep_writing(repository: OrderRepository) -> None:
        while not applied.done():
            await write(repository)

    async with databases.pool(database_url, max_connections=8) as database:
        for _ in range(150):
            await write(OrderRepository(database, words=before))
        repository = OrderRepository(database, words=after)
        applied = asyncio.create_task(reclassify(database_url, after))
        await asyncio.gather(*(keep_writing(repository) for _ in range(6)))
        assert (await applied).moves
        for order_id in order_ids:
            order = await repository.get(order_id)
            assert order.payment_state == after.state(order.payment_status)
    for order_id in order_ids:
        # Null after a change by hand.
        for earlier, later in pairwise(events(database_url, order_id)):
            assert earlier["payment_state_after"] in (None, later["payment_state_before"])
