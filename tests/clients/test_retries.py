"""While PostgreSQL is away for a moment, clients that retry make their update, once."""

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    UpdateOrderPaymentRequest,
)
from tests.support import callers, cluster, service
from tests.support.client_table import documented
from tests.support.markdown import blocks, page
from tests.support.orders import Orders
from tests.support.real_clients import Client, Library, Options
from tests.support.waiting import eventually


def documented_service_config() -> Any:
    """Return the service config that docs/clients.md gives to copy."""
    found = [each for each in blocks(page("clients.md")) if '"retryPolicy"' in each.text]
    return json.loads(found[0].text)


def test_an_update_while_postgresql_is_away(installed: list[Library], tmp_path: Path) -> None:
    config = documented_service_config()
    with ExitStack() as stack:
        database = stack.enter_context(cluster.running())
        running = stack.enter_context(service.running(database.url, tmp_path / "log"))
        orders = Orders(database.url)
        clients: dict[Library, Client] = {}
        updates: dict[Library, UpdateOrderPaymentRequest] = {}
        for library in installed:
            client = library.connected(Options(running.base_url, service_config=config))
            clients[library] = stack.enter_context(client)
            order_id = orders.add()
            clients[library](GetOrderRequest(order_id=order_id)).message()
            updates[library] = UpdateOrderPaymentRequest(
                order_id=order_id, payment_status="paid", payment_idempotency_key=f"evt_{library}"
            )

        with database.unreachable():
            answers = {library: clients[library](updates[library]) for library in installed}
            # Each has been refused once, before PostgreSQL comes back.
            wanted = {each.order_id for each in updates.values()}
            refused = partial(running.logged, code="unavailable")
            eventually(lambda: wanted <= {each.get("order_id") for each in refused()})

        for library, answer in answers.items():
            with documented(library.name, "retries"):
                assert answer.message().order.payment_status == "paid"
                with callers.grpcio(running.base_url) as call:
                    request = ListOrderPaymentEventsRequest(order_id=updates[library].order_id)
                    assert len(call(request).events) == 1
