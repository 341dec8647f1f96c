"""PostgreSQL's CPU for an update of a payment, to that of version 0.1, for the flows of providers.

Each version has a database with its own schema, and one connection, whose backend is measured. The
versions alternate over the same orders, some at a time.
"""

import asyncio
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg

from benchmarks.database import prepared
from benchmarks.errors import BenchmarkError
from persistence.database import Database
from persistence.dsn import asyncpg_dsn
from persistence.models import PAYMENT_COLUMNS, Origin, PaymentUpdate
from persistence.models import Order as OrderRecord
from persistence.orders import OrderRepository

Costs = dict[str, dict[str, list[float]]]
"""By flow and version: PostgreSQL's CPU for all updates of an order, in seconds, by round."""

BEFORE: Final = "0.1"
NOW: Final = "now"

FLOWS: Final = ("stripe", "allsecure")
WITH_AMOUNTS: Final = " with times and amounts"
"""Version 0.1 has neither, and makes the same updates without them."""

_ROUNDS_TO_WARM_UP: Final = 1
_ORDERS_A_ROUND: Final = 100
_ORIGIN: Final = Origin("0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "payment-service")
_SCHEMA_BEFORE: Final = "20261125000001"

# By a new status, those that version 0.1 does not let become it.
_DISALLOWED: Final = {
    "pending": ["paid", "partially_refunded", "disputed", "refunded", "charged_back"],
    "paid": ["partially_refunded", "refunded", "charged_back"],
}

_NEW_ORDERS: Final = """
    SELECT id FROM orders WHERE payment_status = 'pending' AND payment_provider IS NULL ORDER BY id
"""


def measure(server: str, orders: int, rounds: int) -> Costs:
    """Return what the flows cost, measured in databases of ``orders`` orders.

    There are as many rounds as there are new orders for, up to ``rounds``.
    """
    with ExitStack() as stack:
        before = stack.enter_context(prepared(server, orders, schema=_SCHEMA_BEFORE))
        now = stack.enter_context(prepared(server, orders))
        for database in (before, now):
            # A rollback leaves the space of the columns that it drops.
            database.connection.execute("VACUUM FULL ANALYZE orders, order_payment_events")
        new = [row[0] for row in now.connection.execute(_NEW_ORDERS)]
        return asyncio.run(_measure(before.url, now.url, new, rounds))


async def _measure(before: str, now: str, new: list[int], rounds: int) -> Costs:
    costs: Costs = {}
    flows = [flow + more for flow in FLOWS for more in ("", WITH_AMOUNTS)]
    rounds = min(rounds + _ROUNDS_TO_WARM_UP, len(new) // len(flows) // _ORDERS_A_ROUND)
    async with _database(now) as database:
        # Version 0.1 does nothing to the memory of its connections.
        old = await asyncpg.connect(dsn=asyncpg_dsn(before))
        try:
            versions = [_Before(old), _Now(database)]
            for version in versions:
                await version.find_backend()
            await _measure_rounds(versions, flows, new, rounds, costs)
        finally:
            await old.close()
    return costs


async def _measure_rounds(
    versions: "Sequence[_Version]", flows: Sequence[str], new: list[int], rounds: int, costs: Costs
) -> None:
    for number in range(rounds):
        for flow in flows:
            ids = [new.pop() for _ in range(_ORDERS_A_ROUND)]
            for version in versions if number % 2 else reversed(versions):
                cost = await version.cost(flow, ids)
                if number >= _ROUNDS_TO_WARM_UP:
                    costs.setdefault(flow, {}).setdefault(version.name, []).append(cost)


def _database(url: str) -> Database:
    return Database(url, max_connections=1, connect_timeout=10, statement_timeout=60)


class _Version(ABC):
    name: str

    def __init__(self, connection: "asyncpg.Connection[Any] | Database") -> None:
        self._connection = connection
        self._backend = Path()

    @abstractmethod
    async def update(self, order_id: int, update: PaymentUpdate) -> None:
        """Make an update."""

    async def find_backend(self) -> None:
        row = await self._connection.fetchrow("SELECT pg_backend_pid()")
        assert row is not None
        self._backend = Path(f"/proc/{row[0]}/schedstat")
        if not self._backend.exists():
            raise BenchmarkError("updates: PostgreSQL does not run on this machine")
        # On the same processor for each version: one may be slower than another, as where other
        # machines share it.
        os.sched_setaffinity(row[0], {max(os.sched_getaffinity(0))})

    async def cost(self, flow: str, ids: Sequence[int]) -> float:
        """Return the CPU for all updates of an order, in seconds."""
        updates = [(order_id, _steps(flow, order_id)) for order_id in ids]
        before = self._cpu()
        for number in range(len(updates[0][1])):
            for order_id, steps in updates:
                await self.update(order_id, steps[number])
        return (self._cpu() - before) / len(ids)

    def _cpu(self) -> float:
        return int(self._backend.read_text().split()[0]) / 1e9


class _Now(_Version):
    name = NOW

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._repository = OrderRepository(database)

    async def update(self, order_id: int, update: PaymentUpdate) -> None:
        await self._repository.update_payment_info(order_id, update, _ORIGIN)


class _Before(_Version):
    name = BEFORE

    async def update(self, order_id: int, update: PaymentUpdate) -> None:
        given = {name: getattr(update, name) for name in PAYMENT_COLUMNS if getattr(update, name)}
        row = await self._connection.fetchrow(
            _update_before(tuple(given)),
            order_id,
            *_ORIGIN,
            *given.values(),
            _DISALLOWED[given["payment_status"]],
        )
        if row is None:
            raise BenchmarkError("updates: version 0.1 has refused one")


def _steps(flow: str, order_id: int) -> list[PaymentUpdate]:
    """Return the updates of an order, each with a key of its own."""
    # As those of providers are: at random places of an index.
    token = hashlib.blake2b(str(order_id).encode(), digest_size=12).hexdigest()
    more: dict[str, Any] = {}
    if flow.endswith(WITH_AMOUNTS):
        time = datetime(2026, 11, 30, 12, tzinfo=UTC)
        more = {"payment_event_time": time, "captured_amount": 1, "currency": "EUR"}
    paid = PaymentUpdate(
        payment_intent_id=f"pi_{token}",
        payment_idempotency_key=f"{flow[:9]}_paid_{token}",
        payment_status="paid",
        **more,
    )
    if flow.startswith("allsecure"):
        return [paid._replace(payment_provider="allsecure")]
    begun = PaymentUpdate(
        payment_provider="stripe",
        payment_session_id=f"cs_{token}{token}",
        payment_idempotency_key=f"{flow[:6]}_begun_{token}",
        payment_status="pending",
        **{name: value for name, value in more.items() if name != "captured_amount"},
    )
    return [begun, paid._replace(payment_transaction_id=f"ch_{token}")]


def _update_before(columns: Sequence[str]) -> str:
    """Return the UPDATE of version 0.1."""
    sets = ", ".join(f"{name} = ${number}" for number, name in enumerate(columns, start=4))
    key = f"${4 + columns.index('payment_idempotency_key')}"
    returned = ", ".join(OrderRecord._fields[: OrderRecord._fields.index("payment_state")])
    return f"""
        UPDATE orders SET {sets},
            updated_at = greatest(clock_timestamp(), updated_at + INTERVAL '1 MICROSECOND')
        WHERE id = $1 AND payment_status <> ALL(${4 + len(columns)})
            AND payment_idempotency_key IS DISTINCT FROM {key}
            AND set_config('listings.request_fields', '{",".join(columns)}', true) IS NOT NULL
            AND set_config('listings.request_id', $2, true) IS NOT NULL
            AND set_config('listings.caller', $3, true) IS NOT NULL
        RETURNING {returned}
    """
