"""Each client library watches payments while the service restarts: each event comes once."""

import time
from contextlib import ExitStack, suppress
from pathlib import Path

from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest, WatchOrderPaymentsRequest
from tests.support import callers, service
from tests.support.callers import Failure
from tests.support.client_table import documented
from tests.support.orders import Orders
from tests.support.real_clients import Answer, Client, Library, Options
from tests.support.service import Service

RECONNECT_SECONDS = 20


class Watcher:
    """Watches an order, and goes on after the last message when its stream ends."""

    def __init__(self, client: Client, order_id: int) -> None:
        self._client = client
        self._order_id = order_id
        self._event_id = ""
        self.stream = self._watch()

    def events(self, count: int) -> list[str]:
        """Return the transactions of so many events, over as many streams as it takes."""
        seen: list[str] = []
        deadline = time.monotonic() + RECONNECT_SECONDS
        while len(seen) < count:
            assert time.monotonic() < deadline, f"{seen} alone"
            with suppress(Failure):
                for message in self.stream:
                    self._event_id = message.event_id
                    if message.event is not None:
                        seen.append(message.event.after.payment_transaction_id)
                        if len(seen) == count:
                            return seen
            time.sleep(0.1)
            self.stream = self._watch()
        return seen

    def _watch(self) -> Answer:
        request = WatchOrderPaymentsRequest(
            order_ids=[self._order_id], last_event_id=self._event_id
        )
        return self._client(request)

    def begin(self) -> None:
        """Wait for the first message of the stream."""
        self._event_id = next(self.stream).event_id


def test_watch(libraries: list[Library], database_url: str, tmp_path: Path) -> None:
    order_id = Orders(database_url).add()

    def update(running: Service, *transactions: str) -> None:
        with callers.grpcio(running.base_url) as call:
            for each in transactions:
                call(UpdateOrderPaymentRequest(order_id=order_id, payment_transaction_id=each))

    with ExitStack() as stack:
        before = stack.enter_context(service.running(database_url, tmp_path / "before"))
        watchers = {}
        for library in libraries:
            client = stack.enter_context(library.connected(Options(before.base_url)))
            watchers[library] = Watcher(client, order_id)
        for watcher in watchers.values():
            watcher.begin()
        update(before, "1", "2")
        for library, watcher in watchers.items():
            with documented(library.name, "watch"):
                assert watcher.events(2) == ["1", "2"]
        update(before, "3")
        assert before.stop() == 0

        port = str(before.port)
        after = stack.enter_context(service.running(database_url, tmp_path / "after", port=port))
        update(after, "4", "5")
        for library, watcher in watchers.items():
            with documented(library.name, "watch"):
                assert watcher.events(3) == ["3", "4", "5"]
        update(after, "6")
        for library, watcher in watchers.items():
            with documented(library.name, "watch"):
                assert watcher.events(1) == ["6"]
