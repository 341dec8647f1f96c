"""Concurrent updates."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from persistence.models import PAYMENT_COLUMNS
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support.callers import CALLERS, Call, Failure
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.updates import update

ROUNDS = 25


@pytest.mark.parametrize("protocol", CALLERS)
def test_concurrent_updates_of_different_fields_are_all_stored(
    running: Service, orders: Orders, protocol: str
) -> None:
    order_id = orders.add()

    def write(field: str) -> list[datetime]:
        times: list[datetime] = []
        # One connection for each thread: threads that share an HTTP/2 one of httpx mix up streams.
        with CALLERS[protocol](running.base_url) as call:
            for number in range(ROUNDS):
                value = f"{order_id} {number}"
                response = call(update(order_id, **{field: value}))
                assert response.order is not None
                assert getattr(response.order, field) == value
                assert response.order.updated_at is not None
                times.append(response.order.updated_at.to_datetime())
        return times

    with ThreadPoolExecutor(len(PAYMENT_COLUMNS)) as pool:
        times = [time for each in pool.map(write, PAYMENT_COLUMNS) for time in each]

    row = orders.row(order_id)
    last = f"{order_id} {ROUNDS - 1}"
    assert {name: row[name] for name in PAYMENT_COLUMNS} == dict.fromkeys(PAYMENT_COLUMNS, last)
    # updated_at moved with every single update, and ended at the newest.
    assert len(set(times)) == len(times)
    assert row["updated_at"] == max(times)


def test_concurrent_updates_of_two_orders_with_one_key(running: Service, orders: Orders) -> None:
    connections = [CALLERS[name](running.base_url) for name in ("grpcio", "connect-json-http1")]
    with connections[0] as first, connections[1] as second, ThreadPoolExecutor(2) as pool:

        def race(pair: tuple[Call, int], key: str) -> bool:
            call, order_id = pair
            request = UpdateOrderPaymentRequest(
                order_id=order_id, payment_status="paid", payment_idempotency_key=key
            )
            try:
                return bool(call(request).success)
            except Failure as failure:
                assert failure.code == "already_exists"
                return False

        for _ in range(30):
            one, other = orders.add(), orders.add()
            key = f"race_{one}"
            won = list(pool.map(race, ((first, one), (second, other)), (key, key)))
            assert sorted(won) == [False, True]
            keys = [orders.row(each)["payment_idempotency_key"] for each in (one, other)]
            statuses = [orders.row(each)["payment_status"] for each in (one, other)]
            assert keys == [key if each else None for each in won]
            assert statuses == ["paid" if each else "pending" for each in won]
