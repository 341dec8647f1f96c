"""Checks that the service's pool has lost no connection."""

import asyncio
from typing import Final

import psycopg

from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support.load import Call
from tests.support.orders import Orders
from tests.support.waiting import eventually_async

SERVICE: Final = "listings"
"""The ``application_name`` to set in the service's URL, by which its connections are counted."""

_ITS_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND "


async def assert_whole(database_url: str, call: Call, size: int) -> None:
    """Check that nothing is left running, and that ``size`` updates can run at once, and do."""
    orders = [Orders(database_url).add() for _ in range(size)]
    updates = [UpdateOrderPaymentRequest(order_id=each, payment_status="paid") for each in orders]
    with psycopg.connect(database_url, autocommit=True) as watching:

        def count(condition: str) -> int:
            row = watching.execute((_ITS_CONNECTIONS + condition).encode(), [SERVICE]).fetchone()
            assert row is not None
            return int(row[0])

        try:
            await eventually_async(lambda: count("state <> 'idle'") == 0)
        except TimeoutError:
            rows = watching.execute(
                "SELECT pid, state, wait_event_type, wait_event, backend_start, xact_start,"
                " query_start, state_change, now(), left(query, 300) FROM pg_stat_activity"
                " WHERE application_name = %s",
                [SERVICE],
            ).fetchall()
            raise AssertionError("\n".join(map(str, rows))) from None
        with psycopg.connect(database_url) as holder:
            holder.execute("SELECT FROM orders WHERE id = ANY(%s) FOR UPDATE", (orders,))
            calls = [asyncio.create_task(call(update, 20)) for update in updates]
            await eventually_async(lambda: count("wait_event_type = 'Lock'") == size)
            holder.rollback()
        assert all(answer.success for answer in await asyncio.gather(*calls))
        # Those of the pool, of LISTEN and of the health check; none has leaked.
        await eventually_async(lambda: size <= count("true") <= size + 2)
