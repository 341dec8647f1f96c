"""The request id: the caller's own, or a generated one."""

import pytest

from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    GetOrderRequest,
)
from tests.support.callers import json_client, path
from tests.support.orders import Orders
from tests.support.reading import MISSING_ORDER_ID, lists
from tests.support.service import Service


@pytest.mark.parametrize("id_", ["client-1", "!" * 128])
def test_the_request_id_is_returned(running: Service, orders: Orders, id_: str) -> None:
    """With responses and errors, by POST and by GET."""
    requests = [
        GetOrderRequest(order_id=orders.add()),
        GetOrderRequest(order_id=MISSING_ORDER_ID),
        GetOrderRequest(),
        FindOrderByPaymentRequest(),
        *lists(),
    ]
    headers = {"x-request-id": id_}
    with json_client(running.base_url) as client:
        for request in requests:
            url, content = path(request), request.to_json()
            query = {"connect": "v1", "encoding": "json", "message": content}
            posted = client.post(url, content=content, headers=headers)
            got = client.get(url, params=query, headers=headers)

            assert got.status_code == posted.status_code
            assert got.json() == posted.json()
            assert got.headers["x-request-id"] == posted.headers["x-request-id"] == id_


def test_an_id_is_generated_for_a_request_without_one(running: Service) -> None:
    with json_client(running.base_url) as client:
        answers = [
            client.post(path(request), content=request.to_json())
            for request in (GetOrderRequest(order_id=MISSING_ORDER_ID), *lists())
        ]

    given = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(given)) == len(answers)
    assert all(given)
