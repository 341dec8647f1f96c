"""``listings verify``: sound histories are found sound, and each fault in the order that has it."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from random import Random
from typing import Any, Final, NamedTuple

import asyncpg
import psycopg
import pytest

from persistence import seeding
from persistence.dsn import asyncpg_dsn
from persistence.errors import PaymentEventRefused, PersistenceError
from persistence.models import PAYMENT_COLUMNS, Origin, PaymentUpdate
from persistence.orders import OrderRepository
from persistence.reclassification import reclassify
from persistence.status_words import StatusWords
from persistence.verification import Verified, last_order_id, verify, verify_orders
from tests.support import by_model, databases
from tests.support.orders import Orders
from tests.support.payment_model import Order
from tests.support.payment_shop import Shop
from tests.support.provider_sequences import SEQUENCES, Sequence
from tests.support.provider_sequences.played import request
from tests.support.provider_sequences.sequence import ORDER, OTHER_ORDER, TOTAL
from tests.support.version_0_1 import KeyReused, OldWorker, StatusRefused

pytestmark = pytest.mark.anyio

SEEDED: Final = 100
COLUMNS: Final = (*PAYMENT_COLUMNS, "payment_state")


async def played(url: str) -> None:
    """Play what providers send, each sequence on orders of its own."""

    async def play(repository: OrderRepository, sequence: Sequence) -> None:
        parts = dict.fromkeys(("shipping_amount", "tax_amount", "discount_amount"), 0)
        ids = {
            name: Orders(url).add(subtotal_amount=TOTAL, total_amount=TOTAL, **parts)
            for name in (ORDER, OTHER_ORDER)
        }
        for update, name in _updates(sequence, f"{ids[ORDER]}"):
            with suppress(PersistenceError):  # some are to be refused
                await repository.update_payment_info(
                    ids.get(name, 2**60 + ids[ORDER]), update, Origin("request")
                )

    async with databases.pool(url, max_connections=4) as database:
        repository = OrderRepository(database)
        await asyncio.gather(*(play(repository, sequence) for sequence in SEQUENCES))


def _updates(sequence: Sequence, prefix: str) -> Iterator[tuple[PaymentUpdate, str]]:
    shop = Shop({name: Order() for name in (ORDER, OTHER_ORDER)}, by_model.rules())
    for event in sequence.events:
        update = by_model.update(request(event._replace(etag=None), shop))
        if (key := update.payment_idempotency_key) is not None:
            update = update._replace(payment_idempotency_key=f"{prefix} {key}")
        yield update, event.order


async def worked_by_version_0_1(url: str) -> None:
    """Update orders by a worker of the version before, and by the service after it."""
    connection = await asyncpg.connect(asyncpg_dsn(databases.with_role(url, "listings_app")))
    try:
        worker, ids = OldWorker(connection), [Orders(url).add() for _ in range(6)]
        for number, word in enumerate(("pending", "processing", "paid", "piad", "refunded")):
            for order_id in ids[: 6 - number]:
                with suppress(StatusRefused, KeyReused):
                    await worker.update(
                        order_id,
                        payment_status=word,
                        payment_session_id=f"cs_{order_id}",
                        payment_idempotency_key=f"old_{order_id}_{number}",
                    )
    finally:
        await connection.close()
    async with databases.pool(url) as database:
        repository = OrderRepository(database)
        for order_id in ids:
            for word in ("paid", "refunded"):
                update = PaymentUpdate(payment_status=word, refunded_amount=1)
                with suppress(PaymentEventRefused):
                    await repository.update_payment_info(order_id, update, Origin("request"))


def changed_by_hand(url: str) -> None:
    orders = Orders(url)
    for values in (
        {"payment_status": "paid"},
        {"payment_status": "our own", "payment_state": 9},
        {"payment_state": None},
        {"captured_amount": 700},
        {"captured_amount": None},
        {"refunded_amount": 1, "payment_transaction_id": None},
        {"status": "shipped", "updated_at": "2026-01-01T00:00:00Z"},
    ):
        order_id = orders.add(payment_status="authorized", captured_amount=900)
        orders.change(order_id, **values)
        orders.change(order_id, payment_provider="cash")
        orders.change(order_id, **values)
    orders.add(payment_state=2)
    with psycopg.connect(url, autocommit=True) as connection:
        deleted = orders.add(payment_status="paid")
        connection.execute(
            "CREATE TEMP TABLE kept AS SELECT * FROM orders WHERE id = %s", [deleted]
        )
        connection.execute("DELETE FROM orders WHERE id = %s", [deleted])
        connection.execute("UPDATE kept SET storefront_id = storefront_id + 1")
        connection.execute("INSERT INTO orders SELECT * FROM kept")
        connection.execute("DELETE FROM orders WHERE id = %s", [orders.add(payment_status="paid")])
        for word in ("paid", "refunded", "failed"):  # in one transaction, several events
            connection.execute(
                "UPDATE orders SET payment_status = %s WHERE id = %s", [word, deleted]
            )


@pytest.fixture
async def lived_url(database_url: str) -> str:
    """The URL of a database with payments of every kind."""
    await seeding.seed(database_url, SEEDED, lambda _size: None)
    await played(database_url)
    await worked_by_version_0_1(database_url)
    changed_by_hand(database_url)
    return database_url


async def test_lives_of_every_kind_are_sound(lived_url: str) -> None:
    passed: list[int] = []
    done = await verify(lived_url, passed.append)
    assert (done.faults, done.sequences, done.unread) == ([], [], [])
    assert done.is_sound
    assert sum(passed) == await last_order_id(lived_url)
    for table, number in (
        ("orders", done.orders),
        ("order_payment_events", done.events),
        ("refused_payment_events", done.refused),
    ):
        assert Orders(lived_url).value(f"SELECT count(*) FROM {table}") == number

    # After each was looked at, not only those that PostgreSQL does not pass over.
    every = await verify_orders(lived_url, range(1, await last_order_id(lived_url) + 1))
    assert every.faults == []

    # States that were null are derived, and words mean something else: some orders have no event.
    await reclassify(lived_url, StatusWords.builtin())
    assert (await verify(lived_url)).is_sound
    with psycopg.connect(lived_url) as connection:
        connection.execute(
            "UPDATE orders SET payment_transaction_id = 'later' || id,"
            " storefront_id = storefront_id + 1"  # earlier events keep theirs
        )
    assert (await verify(lived_url)).faults == []


class Fault(NamedTuple):
    """What is broken in an order, and a part of what is said of it."""

    breaking: str
    """A statement; %(id)s is the order, %(first)s, %(second)s and %(last)s events of it."""
    said: str
    is_refused: bool = False


def faults() -> Iterator[Fault]:
    order = "UPDATE orders SET {} WHERE id = %(id)s"
    event = "UPDATE order_payment_events SET {} WHERE id = %({})s"
    for column in COLUMNS:
        other = "6" if column == "payment_state" else "'broken ' || %(id)s"
        yield Fault(
            order.format(f"{column} = {other}"), f"is not what event %(last)s left: {column}"
        )
        yield Fault(
            event.format(f"{column}_after = {other}", "first"),
            f"event %(second)s: does not go on from event %(first)s: {column}",
        )
        yield Fault(
            event.format(f"{column}_before = {other}", "second"),
            f"event %(second)s: does not go on from event %(first)s: {column}",
        )
        yield Fault(
            event.format(f"{column}_after = {other}", "last"),
            f"is not what event %(last)s left: {column}",
        )
        yield Fault(
            event.format(f"{column}_before = {other}", "first"),
            f"event %(first)s: is the first, and has a payment before it: {column}",
        )
        if column not in {"payment_status", "payment_state"}:
            yield Fault(order.format(f"{column} = NULL"), "is not what event %(last)s left")
    unexplained = "has what no event explains: "
    for column, value in {
        "captured_amount": "captured_amount + 1",
        "refunded_amount": "1",
        "payment_event_time": "now()",
        "payment_version": "'12345'",
    }.items():
        yield Fault(order.format(f"{column} = {value}"), f"{unexplained}{column}")
    yield Fault(order.format("captured_amount = NULL"), f"{unexplained}captured_amount")
    delete = "DELETE FROM order_payment_events WHERE id = %({})s"
    yield Fault(delete.format("first"), "event %(second)s: is the first, and has a payment")
    yield Fault(delete.format("second"), "event %(last)s: does not go on from event %(first)s")
    yield Fault(delete.format("last"), "is not what event %(second)s left")
    yield Fault(
        "DELETE FROM order_payment_events WHERE order_id = %(id)s", "has a payment and no history"
    )
    yield Fault(
        "UPDATE order_payment_events SET id = CASE id WHEN %(first)s THEN -2 WHEN %(second)s"
        " THEN -3 ELSE -1 END WHERE order_id = %(id)s",
        "does not go on from event",
    )
    yield Fault(
        event.format("transaction_id = '123456789'", "second"),
        "event %(second)s: has a transaction id of the future, 123456789",
    )
    yield Fault(
        event.format("idempotency_key = NULL", "second"),
        "event %(second)s: brings an idempotency key, and does not record its use",
    )
    yield Fault(
        event.format("idempotency_key = 'broken ' || %(id)s", "second"),
        "event %(second)s: records the use of another idempotency key",
    )
    yield Fault(
        event.format("further_idempotency_key = idempotency_key, idempotency_key = NULL", "second"),
        "event %(second)s: is a further use of an idempotency key without a first one before it",
    )
    yield Fault(
        event.format("further_idempotency_key = idempotency_key", "second"),
        "event %(second)s: has the key of a first use and that of a further one",
    )
    columns = ", ".join(f"{column}_before = NULL" for column in COLUMNS)
    yield Fault(
        event.format(f"{columns}, named_fields = 1", "first"),
        "event %(first)s: is a request, and has no status before it",
    )
    yield Fault(
        event.format("payment_status_before = NULL", "second"),
        "event %(second)s: has no status before it, but has payment_provider",
    )
    refused = "UPDATE refused_payment_events SET {} WHERE order_id = %(id)s"
    for change, said in {
        "times = 0": "was not refused any number of times",
        "last_refused_at = first_refused_at - interval '1s'": "was last refused before it was",
        "transaction_id = '123456789'": "has a transaction id of the future",
    }.items():
        yield Fault(refused.format(change), said, is_refused=True)


FAULTS: Final = tuple(faults())

# Orders with three events, and whether they have a refused one. Each column has a value.
_CANDIDATES: Final = """
    SELECT order_id, array_agg(event.id ORDER BY event.id), EXISTS (
        SELECT FROM refused_payment_events refused WHERE refused.order_id = event.order_id
    ) FROM order_payment_events event JOIN orders ON orders.id = order_id
    WHERE orders.captured_amount IS NOT NULL AND orders.refunded_amount IS NULL
    AND num_nulls(
        orders.payment_session_id, orders.payment_intent_id, orders.payment_transaction_id
    ) = 0
    GROUP BY order_id
    HAVING count(*) = 3 AND bool_and(idempotency_key IS NOT NULL AND payment_state_after <> 6)
    ORDER BY order_id
"""


async def test_each_fault_is_found_in_its_order(database_url: str) -> None:
    await seeding.seed(database_url, 2_000, lambda _size: None)
    expected: dict[int, str] = {}
    with psycopg.connect(database_url) as connection:
        connection.execute("SET session_replication_role = replica")  # without triggers
        connection.execute(
            "ALTER TABLE order_payment_events ALTER id SET GENERATED BY DEFAULT;"
            "ALTER TABLE refused_payment_events"
            " DROP CONSTRAINT refused_payment_events_times_positive"
        )
        found = connection.execute(_CANDIDATES).fetchall()
        found.sort(key=lambda row: not row[2])
        for fault in sorted(FAULTS, key=lambda fault: not fault.is_refused):
            order_id, events, has_refused = found.pop(0)
            assert has_refused >= fault.is_refused
            first, second, *_, last = events
            names = {"id": order_id, "first": first, "second": second, "last": last}
            connection.execute(fault.breaking.encode(), names)
            expected[order_id] = fault.said % names
    done = await verify(database_url)
    by_order = _by_order(done)
    assert {each: said for each, said in expected.items() if each not in by_order} == {}
    assert by_order.keys() == expected.keys()
    for order_id, said in expected.items():
        assert said in by_order[order_id]
    assert _by_order(await verify_orders(database_url, expected)) == by_order
    assert not done.is_sound
    assert not done.sequences


def _by_order(done: Verified) -> dict[int, str]:
    found: dict[int, str] = {}
    for fault in done.faults:
        found[fault.order_id] = f"{found.get(fault.order_id, '')}{fault}\n"
    return found


# What keeps it unique, how it is repeated, and what is said of it; %(first)s and %(second)s are the
# ids of two orders, of their events and of their refused events.
REPETITIONS: Final = (
    (
        "DROP INDEX idx_order_payment_events_idempotency_key",
        "UPDATE order_payment_events SET idempotency_key = 'key', payment_idempotency_key_after ="
        " 'key'",
        "event %(second)s: records the first use of an idempotency key, as does event %(first)s",
    ),
    (
        "DROP INDEX idx_order_payment_events_further_idempotency_key",
        "UPDATE order_payment_events SET further_idempotency_key = 'key', idempotency_key = NULL,"
        " payment_idempotency_key_after = 'key', request_digest ="
        " '00000000-0000-0000-0000-000000000000'",
        "event %(second)s: is the same request as event %(first)s",
    ),
    (
        "DROP INDEX idx_orders_idempotency_key",
        "UPDATE orders SET payment_idempotency_key = 'key'",
        "order %(second)s: has the idempotency key of order %(first)s",
    ),
    (
        "ALTER TABLE refused_payment_events DROP CONSTRAINT refused_payment_events_digest_key",
        "UPDATE refused_payment_events SET digest = '00000000-0000-0000-0000-000000000000'",
        "refused event %(second)s: repeats refused event %(first)s",
    ),
)


async def test_what_is_not_unique_any_more(database_url: str) -> None:
    """Also where the shop has a unique index of the same columns, of some rows alone."""
    orders = Orders(database_url)
    with psycopg.connect(database_url) as connection:
        for _ in range(2 * len(REPETITIONS)):
            order_id = orders.add(payment_status="paid")
            connection.execute(
                "INSERT INTO refused_payment_events (order_id, digest, reason, written,"
                " tells_of_money, request_id) SELECT %s, gen_random_uuid(), 'r', false, false, 'r'",
                [order_id],
            )
    assert (await verify(database_url)).is_sound
    expected = []
    with psycopg.connect(database_url) as connection:
        connection.execute("SET session_replication_role = replica")
        for number, (dropped, breaking, said) in enumerate(REPETITIONS):
            ids = {"first": 2 * number + 1, "second": 2 * number + 2}
            connection.execute(dropped.encode())
            connection.execute(f"{breaking} WHERE id IN (%(first)s, %(second)s)".encode(), ids)
            expected.append(said % ids)
        for table, column in (
            ("orders", "payment_idempotency_key"),
            ("order_payment_events", "idempotency_key"),
            ("order_payment_events", "further_idempotency_key, request_digest"),
            ("refused_payment_events", "digest"),
        ):
            some = f"CREATE UNIQUE INDEX ON {table} ({column}) WHERE id > 100"
            connection.execute(some.encode())
    faults = [str(fault) for fault in (await verify(database_url)).faults]
    assert [said for said in expected if not any(said in fault for fault in faults)] == []


async def test_sequences_that_are_behind(database_url: str) -> None:
    orders = Orders(database_url)
    for _ in range(3):
        orders.add(payment_status="paid")
    for table in ("orders", "order_payment_events"):
        orders.value(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), 1)")
    done = await verify(database_url)
    assert done.sequences == [
        "the sequence public.order_payment_events_id_seq is at 1, behind row 3 of"
        " order_payment_events",
        "the sequence public.orders_id_seq is at 1, behind row 3 of orders",
    ]
    assert not done.is_sound


async def test_a_shop_may_choose_the_ids_of_orders(database_url: str) -> None:
    """With a sequence that is never used, and without one."""
    orders = Orders(database_url)
    orders.add(id=4_711)
    assert (await verify(database_url)).is_sound
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE orders ALTER id DROP IDENTITY")
    done = await verify(database_url)
    assert done.is_sound
    assert done.unread == []


async def test_events_of_earlier_epochs_may_have_any_transaction(database_url: str) -> None:
    orders = Orders(database_url)
    for _ in range(2):
        orders.add(payment_status="paid")
    with psycopg.connect(database_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE order_payment_events SET transaction_id = '123456789'")
        connection.execute("UPDATE orders SET payment_version = '123456789'")
    assert [fault.event_id for fault in (await verify(database_url)).faults] == [1, 2]
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS payment_history_epochs (id BIGINT GENERATED BY DEFAULT AS"
            " IDENTITY, system_identifier BIGINT NOT NULL DEFAULT"
            " (pg_control_system()).system_identifier, last_event_id BIGINT NOT NULL,"
            " last_refused_event_id BIGINT NOT NULL)"
        )
        connection.execute(
            "INSERT INTO payment_history_epochs (last_event_id, last_refused_event_id)"
            " VALUES (1, 0)"
        )
    assert [fault.event_id for fault in (await verify(database_url)).faults] == [2]


async def test_the_role_of_the_service_may_verify(database_url: str) -> None:
    Orders(database_url).add(payment_status="paid")
    done = await verify(databases.with_role(database_url, "listings_app"))
    assert done.is_sound
    assert done.unread == ["orders"]


async def test_updates_meanwhile_are_no_faults(database_url: str) -> None:
    """Each order is read with its history, whatever is written at the same time."""
    orders = Orders(database_url)
    ids = [orders.add() for _ in range(20)]
    numbers, stopping = count(), asyncio.Event()

    async def keep_updating(repository: OrderRepository, random: Random) -> None:
        while not stopping.is_set():
            number = next(numbers)
            update = PaymentUpdate(
                payment_provider="stripe",
                payment_session_id=f"cs_{number}",
                payment_idempotency_key=f"evt_{number}" if number % 2 else None,
                payment_status=random.choice(("pending", "processing", "created")),
            )
            with suppress(PaymentEventRefused):
                await repository.update_payment_info(random.choice(ids), update, Origin("request"))

    async def keep_changing(connection: Any, random: Random) -> None:
        while not stopping.is_set():
            word = random.choice(("pending", "authorized", "on hold"))
            await connection.execute(
                "UPDATE orders SET payment_status = $1, captured_amount = $2 WHERE id = $3",
                *(word, random.choice((None, 1, 2)), random.choice(ids)),
            )

    connection = await asyncpg.connect(asyncpg_dsn(database_url))
    async with databases.pool(database_url, max_connections=3) as database:
        repository = OrderRepository(database)
        async with asyncio.TaskGroup() as group:
            for seed in range(4):
                group.create_task(keep_updating(repository, Random(seed)))
            group.create_task(keep_changing(connection, Random(5)))
            done = [await verify(database_url) for _ in range(4)]
            done += [await verify_orders(database_url, ids) for _ in range(4)]
            stopping.set()
    await connection.close()
    assert [each for each in done if not each.is_sound] == []
    assert len({each.events for each in done}) > 3  # it was written to meanwhile
