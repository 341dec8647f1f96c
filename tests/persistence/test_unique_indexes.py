"""What a unique violation means is decided by the key of the request, not by an index's name."""

import asyncio

import pytest

from persistence.database import Database
from persistence.errors import IdempotencyKeyReused, UniqueViolation
from persistence.models import Origin
from persistence.orders import OrderRepository
from persistence.payment_updates import Guard, Update
from tests.support import databases
from tests.support.history import connect, update
from tests.support.orders import Orders
from tests.support.refused_updates import PAID, SECOND, refuse, refused

pytestmark = pytest.mark.anyio

KEY_INDEXES = {
    "idx_orders_idempotency_key": "orders (payment_idempotency_key)",
    "idx_order_payment_events_idempotency_key": "order_payment_events (idempotency_key)",
    "idx_order_payment_events_further_idempotency_key": (
        "order_payment_events (further_idempotency_key, request_digest)"
    ),
}

CHANGES = {
    "renamed": "ALTER INDEX {name} RENAME TO {name}_of_ours",
    # The names that REINDEX CONCURRENTLY gives, for a time or where it was interrupted: the index
    # that was there first is checked first.
    "being rebuilt": (
        "ALTER INDEX {name} RENAME TO {name}_ccold; CREATE UNIQUE INDEX {name} ON {of}"
    ),
    "rebuilt": "CREATE UNIQUE INDEX {name}_ccnew ON {of}; DROP INDEX {name}",
    "another one": "CREATE UNIQUE INDEX {name}_of_ours ON {of}",
}

CALLS = 8

FIRST, FURTHER, LATER = (
    {"payment_idempotency_key": "evt_1", "payment_status": "paid"},
    {"payment_idempotency_key": "evt_1", "payment_status": "paid", "payment_transaction_id": "t"},
    {"payment_idempotency_key": "evt_2", "payment_status": "paid"},
)


def of_order(params: dict[str, str], order_id: int) -> dict[str, str]:
    key = params["payment_idempotency_key"]
    return params | {"payment_idempotency_key": f"{key} of {order_id}"}


async def pay(
    database: Database, params: dict[int, dict[str, str]], guard: Guard = Guard.ON
) -> list[object]:
    """Update orders at once: the first ones by statements of their own, the others in a batch."""
    repository = OrderRepository(database, guard=guard)
    calls = (
        repository.update_payment_info(order_id, update(each), Origin("r"))
        for order_id, each in params.items()
    )
    return list(await asyncio.gather(*calls, return_exceptions=True))


@pytest.mark.parametrize("change", CHANGES)
async def test_a_replay_is_one_whatever_the_index_is_called(database_url: str, change: str) -> None:
    orders = Orders(database_url)
    others = {orders.add(): orders.add() for _ in range(CALLS)}
    with connect(database_url) as owner:
        for name, of in KEY_INDEXES.items():
            owner.execute(CHANGES[change].format(name=name, of=of).encode())

    async with databases.pool(database_url, max_connections=6) as database:
        for replayed in (False, True):
            for event in (FIRST, FURTHER, LATER):
                made = await pay(database, {each: of_order(event, each) for each in others})
                assert [type(each) for each in made] == [Update] * CALLS
                assert {getattr(each, "replayed", None) for each in made} == {replayed}
        for event in (FIRST, FURTHER, LATER):
            of_others = {other: of_order(event, each) for each, other in others.items()}
            made = await pay(database, of_others)
            assert {type(each) for each in made} == {IdempotencyKeyReused}


@pytest.mark.parametrize("guard", [Guard.ON, Guard.SHADOW])
@pytest.mark.parametrize("keys", ["none", "first use", "further use"])
async def test_a_violation_of_another_index_is_an_error_that_names_it(
    database_url: str, keys: str, guard: Guard
) -> None:
    """In shadow mode, of an update that would be refused."""
    orders = Orders(database_url)
    order_ids = [orders.add() for _ in range(CALLS)]
    orders.add(payment_transaction_id="txn_taken")
    with connect(database_url) as owner:
        owner.execute("""
            CREATE UNIQUE INDEX one_order ON orders (payment_transaction_id)
            WHERE payment_transaction_id = 'txn_taken';
            CREATE SEQUENCE tries;
            CREATE FUNCTION count_try() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN PERFORM nextval('tries'); RETURN new; END $$;
            CREATE TRIGGER count_try BEFORE UPDATE ON orders
            FOR EACH ROW EXECUTE FUNCTION count_try()
        """)
    word = "paid" if guard is Guard.ON else "failed"
    taken = {"payment_status": word, "payment_transaction_id": "txn_taken"}

    async with databases.pool(database_url, max_connections=6) as database:
        if keys == "further use":
            await pay(database, {each: of_order(FIRST, each) for each in order_ids})
        elif guard is Guard.SHADOW:
            await pay(database, {each: of_order(LATER, each) for each in order_ids})
        before = orders.value("SELECT nextval('tries')")
        made = await pay(
            database,
            {
                each: taken if keys == "none" else of_order(FIRST, each) | taken
                for each in order_ids
            },
            guard,
        )
        tries = orders.value("SELECT nextval('tries')") - before - 1

    assert {type(each) for each in made} == {UniqueViolation}
    assert {str(each) for each in made} == {"unique constraint one_order is violated"}
    assert tries <= 4 * CALLS


async def test_a_refused_event_meets_an_equal_one_in_an_index_that_is_being_rebuilt(
    repository: OrderRepository, database_url: str
) -> None:
    """ON CONFLICT looks at the indexes that are complete, and fails by the others."""
    order_id = Orders(database_url).add()
    with connect(database_url) as owner:
        owner.execute("""
            CREATE SEQUENCE tries;
            CREATE FUNCTION violate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN
                IF nextval('tries') = 1 THEN
                    RAISE unique_violation USING constraint = 'digest_key_ccnew';
                END IF;
                RETURN new;
            END $$;
            CREATE TRIGGER violate BEFORE INSERT ON refused_payment_events
            FOR EACH ROW EXECUTE FUNCTION violate()
        """)
    await repository.update_payment_info(order_id, PAID, Origin("first"))
    for times in (1, 2):
        assert await refuse(repository, order_id, SECOND) == "PAYMENT_DUPLICATE"
        assert [row["times"] for row in refused(database_url)] == [times]
