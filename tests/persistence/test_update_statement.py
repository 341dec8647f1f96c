"""The UPDATE of a payment: its texts, and the round trips that an update takes."""

import itertools
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from persistence import decision
from persistence.dsn import asyncpg_dsn
from persistence.models import PAYMENT_COLUMNS, Order, Origin, PaymentUpdate, etag_of
from persistence.orders import OrderRepository
from persistence.payment_states import Meaning, PaymentState
from persistence.update_statement import Recorded, Rules, Second, arguments, statement
from persistence.update_terms import Shape
from tests.support import databases, wire
from tests.support.orders import Orders

SETS: Final = [
    columns
    for size in range(len(PAYMENT_COLUMNS) + 1)
    for columns in combinations(PAYMENT_COLUMNS, size)
]
KEY, STATUS = "payment_idempotency_key", "payment_status"
NOON: Final = datetime(2026, 11, 30, 12, tzinfo=UTC)
RICH: Final[dict[str, Any]] = {
    "payment_event_time": NOON,
    "captured_amount": 11_983,
    "refunded_amount": 0,
    "currency": "EUR",
}


SECOND: Final = Second('{"pending": 2}', may_be_first_use=True, is_further_use=False)


def shapes() -> Iterator[Shape]:
    """Yield the shape of every text that there is."""
    for columns, is_rich, is_scoped in itertools.product(SETS, (False, True), (False, True)):
        if columns or is_rich:
            for fixed in (False, True) if STATUS in columns else (False,):
                for second in (False, True) if is_rich else (False,):
                    yield Shape(columns, is_rich, is_scoped, fixed, second)


def test_the_columns_and_conditions_of_each_text() -> None:
    for shape in shapes():
        sql = statement(shape)
        found = re.fullmatch(
            r'(WITH .+?)?UPDATE "orders" SET (.+) WHERE "id"=\$1 AND (.+?) RETURNING ([^ )]+)(.*)',
            sql,
            re.DOTALL,
        )
        assert found
        written = set(re.findall(r'(?:^|,)"(\w+)"=', found[2]))
        derived = {"payment_version", "payment_state", "payment_status_since", "updated_at"}
        if STATUS in shape.columns:
            derived |= {"contested_from", "payment_event_time"}
        if shape.is_rich:
            derived |= {"captured_amount", "refunded_amount"}
        if {"payment_provider", "payment_session_id"} & set(shape.columns):
            derived.add("payment_session_stale")
        if {"payment_provider", "payment_session_id", "payment_intent_id"} & set(shape.columns):
            derived.add("payment_intent_stale")
        assert written == {*shape.columns, *derived}
        assert ("storefront_id" in found[3]) == shape.is_scoped
        assert (shape.is_second, shape.is_second) == (bool(found[1]), bool(found[5]))
        assert sql.count('"storefront_id"=ANY') == shape.is_scoped * (1 + shape.is_second)
        assert ("listings.further_use" in sql) == (shape.is_second and KEY in shape.columns)
        assert sql.count("listings.payment_event") == 1
        assert re.findall(r'"orders"\."(\w+)"', found[4]) == list(Order._fields)


def test_a_text_is_built_once() -> None:
    statement.cache_clear()
    for _ in range(2):
        for shape in shapes():
            statement(shape)
    count = len(list(shapes()))
    assert statement.cache_info()[:2] == (count, count)


@pytest.mark.parametrize(
    "columns", [("id",), ("payment_status", "status"), ('"; DROP',), (KEY, "payment_provider")]
)
def test_other_columns_and_orders_of_them_are_refused(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected some of"):
        statement(Shape(columns, is_rich=False, is_scoped=False))


def test_a_plain_text_without_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        statement(Shape((), is_rich=False, is_scoped=False))


@pytest.mark.anyio
async def test_postgresql_prepares_and_runs_each_text(database_url: str) -> None:
    """With the rights of the service, on an order whose payment has not begun."""
    order_id = Orders(database_url).add(storefront_id=3)
    url = databases.with_role(database_url, "listings_app")
    connection = await asyncpg.connect(dsn=asyncpg_dsn(url), statement_cache_size=0)
    try:
        for shape in shapes():
            given: dict[str, Any] = {name: f"{name[8:13]}" for name in shape.columns}
            given |= {STATUS: "paid"} if STATUS in shape.columns else {}
            update = PaymentUpdate(**given, **(RICH if shape.is_rich else {}))
            paid: PaymentState | bytes = PaymentState.PAID
            if not shape.has_fixed_state:
                paid = decision.targets(Meaning(PaymentState.PAID))
            rules = Rules(
                decision.refusals(Meaning(PaymentState.PAID)),
                paid if STATUS in shape.columns else None,
                is_reversal=False,
                version=None,
                second=SECOND if shape.is_second else None,
            )
            digest = "0" * 32 if KEY in shape.columns else ""
            recorded = Recorded("request", "caller", 64, digest, '{"captured_amount": 11983}')
            scope = ([3],) if shape.is_scoped else ()
            transaction = connection.transaction()
            await transaction.start()
            row = await connection.fetchrow(
                statement(shape), order_id, *arguments(shape, update, rules, recorded, scope)
            )
            await transaction.rollback()
            assert row is not None, shape
            assert row[len(Order._fields) :] == (True,) * shape.is_second
            assert dict(row).items() >= given.items()
            expected = PaymentState.PAID if STATUS in shape.columns else PaymentState.PENDING
            assert row["payment_state"] == expected
            assert row["captured_amount"] == update.captured_amount
    finally:
        await connection.close()


# The round trips of an update.


class Paying:
    """Updates orders by one connection, and counts the round trips of each update."""

    def __init__(self, url: str, repository: OrderRepository, counts: wire.Counts) -> None:
        self.orders = Orders(url)
        self.repository = repository
        self._counts = counts

    async def cost(self, order_id: int, **fields: Any) -> int:
        """Update the order, and return the number of round trips."""
        before = self._counts.round_trips
        await self.repository.update_payment_info(
            order_id, PaymentUpdate(**fields), Origin("request")
        )
        return self._counts.round_trips - before


@asynccontextmanager
async def paying(url: str, directory: Path) -> AsyncIterator[Paying]:
    async with (
        wire.counted(url, directory) as (through, counts),
        databases.pool(through, max_connections=1, prepared_statements=True) as database,
    ):
        yield Paying(url, OrderRepository(database), counts)


@pytest.mark.anyio
@pytest.mark.parametrize("rich", [{}, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("keyed", [False, True], ids=["unkeyed", "keyed"])
async def test_each_update_is_one_round_trip(
    database_url: str, tmp_path: Path, *, rich: dict[str, Any], keyed: bool
) -> None:
    """So are the first one of an order, and a further one under the key that it has."""
    async with paying(database_url, tmp_path) as client:
        costs = []
        for number in range(3):
            order_id = client.orders.add()
            fields: dict[str, Any] = {"payment_provider": "stripe", **rich}
            if keyed:
                fields[KEY] = f"key {number}"
            costs += [
                await client.cost(order_id, payment_status=status, **fields)
                for status in ("pending", "processing", "paid", "refunded")
            ]
        assert costs[4:] == [1] * 8  # the first ones also prepare the statement


@pytest.mark.anyio
async def test_an_update_with_an_etag_is_one_round_trip(database_url: str, tmp_path: Path) -> None:
    async with paying(database_url, tmp_path) as client:
        order = await client.repository.get(client.orders.add())
        costs = []
        for amount in (1, 2, 3):
            costs.append(await client.cost(order.id, captured_amount=amount, etag=etag_of(order)))
            order = await client.repository.get(order.id)
        assert costs[1:] == [1, 1]


@pytest.mark.anyio
async def test_a_further_event_under_an_earlier_key(database_url: str, tmp_path: Path) -> None:
    """The unique index refuses it as a first use; the second try makes it as a further one."""
    async with paying(database_url, tmp_path) as client:
        costs = []
        for number in range(3):
            order_id = client.orders.add()
            await client.cost(order_id, payment_status="pending", **{KEY: f"first {number}"})
            await client.cost(order_id, payment_status="processing", **{KEY: f"second {number}"})
            costs.append(
                await client.cost(order_id, payment_status="paid", **{KEY: f"first {number}"})
            )
            assert client.orders.row(order_id)["payment_status"] == "paid"
        assert costs[1:] == [2, 2]


@pytest.mark.anyio
async def test_an_order_whose_word_was_changed_by_hand(database_url: str, tmp_path: Path) -> None:
    """The first try writes nothing while the state is null; the second one knows the word."""
    async with paying(database_url, tmp_path) as client:
        for number in range(3):
            order_id = client.orders.add()
            await client.cost(order_id, payment_status="pending")
            client.orders.change(order_id, payment_status="processing")
            assert client.orders.row(order_id)["payment_state"] is None
            first = await client.cost(order_id, payment_status="paid")
            second = await client.cost(order_id, payment_status="refunded")
            assert number == 0 or (first, second) == (2, 1)  # at first, statements are prepared
