"""Demo orders, as a shop has them after some months, to try the service and to measure it."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TypeAlias, TypeVar

import asyncpg

from persistence.dsn import asyncpg_dsn
from persistence.errors import SeedError

_BATCH = 20_000

_CURRENCIES = ("EUR", "EUR", "EUR", "USD", "GBP", "CHF", "JPY")
_SHIPPING = (0, 490, 990)
_STATUSES = (  # of the order and of its payment, each as often as in a hundred orders
    *[("pending", "pending")] * 8,
    *[("confirmed", "paid")] * 15,
    *[("shipped", "paid")] * 20,
    *[("delivered", "paid")] * 47,
    *[("cancelled", "failed")] * 6,
    *[("cancelled", "refunded")] * 4,
)
_NO_PAYMENT = (None,) * 5
_TAX_PERCENT = 19

_COLUMNS = (
    "id",
    "order_number",
    "buyer_id",
    "storefront_id",
    "status",
    "payment_status",
    "currency",
    "subtotal_amount",
    "shipping_amount",
    "tax_amount",
    "discount_amount",
    "total_amount",
    "created_at",
    "updated_at",
    "payment_provider",
    "payment_session_id",
    "payment_intent_id",
    "payment_idempotency_key",
    "payment_transaction_id",
)


# The id of a deleted order is not assigned again.
_LAST_ID = """
    SELECT greatest(max(id), pg_sequence_last_value(pg_get_serial_sequence('orders', 'id')), 0)
    FROM orders
"""

_T = TypeVar("_T")
_Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def is_empty(url: str) -> bool:
    """Return whether the table of orders is empty. ``url`` is a libpq URL. Raises SeedError."""
    async with _connection(url) as connection:
        return await _is_empty(connection)


async def seed(url: str, orders: int, progress: Callable[[int], object]) -> None:
    """Add that many demo orders, all or none, and call ``progress`` with the size of each batch.

    The first order of a new table has the id 1 and a pending payment. The others are the same each
    time, except for their dates, which are in the last 180 days. Raises SeedError.
    """
    async with _connection(url) as connection, _exclusive(connection):
        await _add(connection, orders, progress)


async def seed_if_empty(url: str, orders: int) -> None:
    """Add demo orders if the table is empty: once, also when several processes do so at once.

    Otherwise as ``seed``.
    """
    async with _connection(url) as connection:
        if await _is_empty(connection):  # checked first without the lock, which waits for writers
            async with _exclusive(connection):
                if await _is_empty(connection):
                    await _add(connection, orders, progress=lambda _size: None)


async def _add(connection: _Connection, orders: int, progress: Callable[[int], object]) -> None:
    first = 1 + await connection.fetchval(_LAST_ID)
    rows = _orders(first, orders, datetime.now(UTC))
    batch = list(islice(rows, _BATCH))
    while batch:
        # The next batch is generated while PostgreSQL writes this one, which takes longer.
        upcoming = asyncio.create_task(asyncio.to_thread(list, islice(rows, _BATCH)))
        await connection.copy_records_to_table("orders", records=batch, columns=_COLUMNS)
        progress(len(batch))
        batch = await upcoming
    last = first + orders - 1
    await connection.execute("SELECT setval(pg_get_serial_sequence('orders', 'id'), $1)", last)
    await connection.execute("ANALYZE orders")


async def _is_empty(connection: _Connection) -> bool:
    return not await connection.fetchval("SELECT EXISTS (SELECT FROM orders)")


@asynccontextmanager
async def _exclusive(connection: _Connection) -> AsyncIterator[None]:
    """Open a transaction that locks the orders against other writers."""
    async with connection.transaction():
        await connection.execute("LOCK TABLE orders IN SHARE ROW EXCLUSIVE MODE")
        yield


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[_Connection]:
    try:
        connection = await asyncpg.connect(dsn=asyncpg_dsn(url))
        try:
            yield connection
        finally:
            await connection.close()
    except asyncpg.UndefinedTableError as error:
        raise SeedError("there is no table of orders; run `listings migrate up` first") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise SeedError(f"cannot add demo orders: {error}") from error


def _orders(first: int, orders: int, now: datetime) -> Iterator[tuple[object, ...]]:
    """Yield the values of ``_COLUMNS`` for each order, oldest first."""
    rng = random.Random(first)  # noqa: S311 - demo data, not secrets
    step = timedelta(days=180) / (orders + 1)
    for number in range(first, first + orders):
        created = now - step * (first + orders - number)
        status, payment_status = _pick(rng, _STATUSES) if number > 1 else _STATUSES[0]
        subtotal = 500 + _below(rng, 25_000)
        shipping = _pick(rng, _SHIPPING)
        discount = subtotal // 10 if _below(rng, 5) == 0 else 0
        tax = (subtotal + shipping - discount) * _TAX_PERCENT // 100
        paying = payment_status != "pending"
        yield (
            number,
            f"L-{created.year}-{number:07d}",
            1 + _below(rng, 50_000),
            1 + _below(rng, 40),
            status,
            payment_status,
            _pick(rng, _CURRENCIES),
            subtotal,
            shipping,
            tax,
            discount,
            subtotal + shipping + tax - discount,
            created,
            created + timedelta(minutes=1 + _below(rng, 600)) if paying else created,
            *(_payment(rng, number, payment_status) if paying else _NO_PAYMENT),
        )


def _payment(rng: random.Random, number: int, status: str) -> tuple[str | None, ...]:
    """Return provider, session, intent, idempotency key and transaction, as providers have them."""
    token = f"{rng.getrandbits(112):028x}"
    transaction = f"txn_{token[:24]}" if status != "failed" else None
    if number % 4:
        session = f"cs_test_{token}"
        return "stripe", session, f"pi_{token[:24]}", f"stripe_{number}_{token[:8]}", transaction
    return "allsecure", None, token[:20], f"allsecure_{number}_{token[:8]}", transaction


def _below(rng: random.Random, limit: int) -> int:
    return int(rng.random() * limit)  # randrange() takes five times as long


def _pick(rng: random.Random, values: Sequence[_T]) -> _T:
    return values[int(rng.random() * len(values))]
