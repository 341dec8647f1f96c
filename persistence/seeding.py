"""Demo orders, as a shop has them after some months, to try the service and to measure it."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, NamedTuple, TypeAlias, TypeVar

import asyncpg

from persistence.decision import Reason
from persistence.demo_payments import LIVES, Life, Payment, Taken, live
from persistence.dsn import asyncpg_dsn
from persistence.errors import SeedError
from persistence.idempotency_keys import request_digest
from persistence.models import PAYMENT_COLUMNS, Order
from persistence.payment_states import PaymentState
from persistence.refused_events import Refusal, refused_digest
from persistence.status_words import StatusWords

_BATCH = 5_000  # orders

_CURRENCIES = ("EUR", "EUR", "EUR", "USD", "GBP", "CHF", "JPY")
_SHIPPING = (0, 490, 990)
_TAX_PERCENT = 19

_REQUEST_ID: Final = "seed"

_UNTOUCHED_ORDER: Final = 12_345
"""The id of an order of the first start whose payment has not begun, for examples."""

_ORDER: Final = Order._fields
_EVENT: Final = (
    "order_id",
    "storefront_id",
    "created_at",
    *(f"{name}_before" for name in PAYMENT_COLUMNS),
    *(f"{name}_after" for name in PAYMENT_COLUMNS),
    "idempotency_key",
    "request_digest",
    "request_id",
    "payment_event_time",
    "captured_amount",
    "refunded_amount",
    "currency",
    "payment_state_before",
    "payment_state_after",
)
_REFUSED: Final = (
    "order_id",
    "storefront_id",
    "reason",
    "written",
    "tells_of_money",
    "digest",
    "requested_state",
    "request_id",
    "first_refused_at",
    "last_refused_at",
    *PAYMENT_COLUMNS,
    "payment_event_time",
    "captured_amount",
    "refunded_amount",
    "currency",
    *(f"order_{name}" for name in PAYMENT_COLUMNS),
    "order_payment_state",
    "order_payment_event_time",
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

    Besides them, the order 12345, whose payment has not begun, unless ``orders`` reach that far.
    Otherwise as ``seed``.
    """
    async with _connection(url) as connection:
        if await _is_empty(connection):  # checked first without the lock, which waits for writers
            async with _exclusive(connection):
                if await _is_empty(connection):
                    await _add(connection, orders, progress=lambda _size: None)
                    if orders < _UNTOUCHED_ORDER:
                        await _add_untouched(connection)


async def _add(connection: _Connection, orders: int, progress: Callable[[int], object]) -> None:
    first = 1 + await connection.fetchval(_LAST_ID)
    rows = _orders(first, orders, datetime.now(UTC))
    batch = await asyncio.to_thread(_batch, rows)
    # The history is copied, too, with the times of its events.
    await connection.execute("ALTER TABLE orders DISABLE TRIGGER payment_inserted")
    while batch.orders:
        # The next batch is generated while PostgreSQL writes this one.
        upcoming = asyncio.create_task(asyncio.to_thread(_batch, rows))
        await _copy(connection, "orders", _ORDER, batch.orders)
        await _copy(connection, "order_payment_events", _EVENT, batch.events)
        await _copy(connection, "refused_payment_events", _REFUSED, batch.refused)
        progress(len(batch.orders))
        batch = await upcoming
    await connection.execute("ALTER TABLE orders ENABLE TRIGGER payment_inserted")
    await _continue_after(connection, first + orders - 1)
    for table in ("orders", "order_payment_events", "refused_payment_events"):
        await connection.execute(f"ANALYZE {table}")


async def _add_untouched(connection: _Connection) -> None:
    now = datetime.now(UTC)
    order = _order(random.Random(_UNTOUCHED_ORDER), _UNTOUCHED_ORDER, now)  # noqa: S311
    await _copy(connection, "orders", _ORDER, [order])
    await _continue_after(connection, _UNTOUCHED_ORDER)


async def _copy(
    connection: _Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    await connection.copy_records_to_table(table, records=rows, columns=columns)


async def _continue_after(connection: _Connection, last: int) -> None:
    await connection.execute("SELECT setval(pg_get_serial_sequence('orders', 'id'), $1)", last)


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


class _Batch(NamedTuple):
    """Rows of the three tables."""

    orders: list[Order]
    events: list[tuple[object, ...]]
    refused: list[tuple[object, ...]]


def _batch(orders: Iterator[tuple[Order, list[Taken]]]) -> _Batch:
    """Return the next orders, with what happened to them."""
    batch = _Batch([], [], [])
    for order, steps in islice(orders, _BATCH):
        batch.orders.append(order)
        for taken in steps:
            if taken.step.refused is None:
                batch.events.append(_event(taken))
            else:
                batch.refused.append(_refused(taken, taken.step.refused))
    return batch


def _orders(first: int, orders: int, now: datetime) -> Iterator[tuple[Order, list[Taken]]]:
    """Yield each order and what has happened to its payment by now; oldest first."""
    rng = random.Random(first)  # noqa: S311 - demo data, not secrets
    words = StatusWords.builtin()
    step = timedelta(days=180) / (orders + 1)
    lives: list[tuple[str, Life]] = []  # of the next orders, in reverse
    for number in range(first, first + orders):
        order = _order(rng, number, now - step * (first + orders - number))
        if not lives:
            lives = rng.sample(LIVES, len(LIVES))
        if number == 1:
            lives.remove(LIVES[0])
            lives.append(LIVES[0])
        status, life = lives.pop()
        order = order._replace(status=status)
        steps = [each for each in life(Payment(rng, order)) if each.at < now]
        taken = list(live(order, steps, words))
        yield taken[-1].after if taken else order, taken


def _order(rng: random.Random, number: int, created: datetime) -> Order:
    """Return an order whose payment has not begun."""
    subtotal = 500 + _below(rng, 25_000)
    shipping = _pick(rng, _SHIPPING)
    discount = subtotal // 10 if _below(rng, 5) == 0 else 0
    tax = (subtotal + shipping - discount) * _TAX_PERCENT // 100
    return Order(
        id=number,
        order_number=f"L-{created.year}-{number:07d}",
        buyer_id=1 + _below(rng, 50_000),
        storefront_id=1 + _below(rng, 40),
        status="pending",
        payment_status="pending",
        currency=_pick(rng, _CURRENCIES),
        subtotal_amount=subtotal,
        shipping_amount=shipping,
        tax_amount=tax,
        discount_amount=discount,
        total_amount=subtotal + shipping + tax - discount,
        created_at=created,
        updated_at=created,
        payment_provider=None,
        payment_session_id=None,
        payment_intent_id=None,
        payment_idempotency_key=None,
        payment_transaction_id=None,
        payment_state=PaymentState.PENDING,
        payment_event_time=None,
        payment_status_since=None,
        captured_amount=None,
        refunded_amount=None,
        payment_version=None,
        contested_from=None,
        payment_session_stale=False,
        payment_intent_stale=False,
    )


def _event(taken: Taken) -> tuple[object, ...]:
    """Return the values of ``_EVENT``."""
    step, before, after = taken.step, taken.before, taken.after
    update = step.update
    return (
        after.id,
        after.storefront_id,
        step.at,
        *(getattr(before, name) for name in PAYMENT_COLUMNS),
        *(getattr(after, name) for name in PAYMENT_COLUMNS),
        update.payment_idempotency_key,
        request_digest(update),
        _REQUEST_ID,
        update.payment_event_time,
        update.captured_amount,
        update.refunded_amount,
        update.currency,
        before.payment_state,
        after.payment_state,
    )


def _refused(taken: Taken, reason: Reason) -> tuple[object, ...]:
    """Return the values of ``_REFUSED``."""
    step, order, update = taken.step, taken.after, taken.step.update
    refusal = Refusal(reason, order.id, order, update, taken.meaning)
    return (
        order.id,
        order.storefront_id,
        reason.value,
        False,
        refusal.tells_of_money,
        refused_digest(refusal, written=False),
        refusal.state,
        _REQUEST_ID,
        step.at,
        step.at,
        *(getattr(update, name) for name in PAYMENT_COLUMNS),
        update.payment_event_time,
        update.captured_amount,
        update.refunded_amount,
        update.currency,
        *(getattr(order, name) for name in PAYMENT_COLUMNS),
        order.payment_state,
        order.payment_event_time,
    )


def _below(rng: random.Random, limit: int) -> int:
    return int(rng.random() * limit)  # randrange() takes five times as long


def _pick(rng: random.Random, values: Sequence[_T]) -> _T:
    return values[int(rng.random() * len(values))]
