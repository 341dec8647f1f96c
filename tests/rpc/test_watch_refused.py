"""Refused events in WatchOrderPayments, over every protocol with streams, and by processes."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.gen.listings.v1.orders_pb import (
    ListRefusedPaymentEventsRequest,
    RefusedPaymentEvent,
    WatchOrderPaymentsRequest,
    WatchOrderPaymentsResponse,
)
from tests.support import callers, service
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.updates import refusal, update
from tests.support.watchers import WATCHERS, Stream, Watch, grpcio


@pytest.fixture(scope="session", params=WATCHERS)
def watch(request: pytest.FixtureRequest, running: Service) -> Iterator[Watch]:
    with WATCHERS[request.param](running.base_url) as watch:
        yield watch


@pytest.fixture(scope="session")
def call(running: Service) -> Iterator[callers.Call]:
    with callers.grpcio(running.base_url) as call:
        yield call


def of(*order_ids: int, after: str = "", refused: bool = True) -> WatchOrderPaymentsRequest:
    return WatchOrderPaymentsRequest(
        order_ids=list(order_ids), last_event_id=after, include_refused=refused
    )


def word(message: WatchOrderPaymentsResponse) -> str:
    """Return the status that a message tells of; that of a refused event with a "!"."""
    if message.refused is not None:
        assert message.event is None
        assert message.refused.requested is not None
        return f"{message.refused.requested.payment_status}!"
    assert message.event is not None
    assert message.event.after is not None
    return message.event.after.payment_status


def refused(stream: Stream) -> RefusedPaymentEvent:
    event = next(stream).refused
    assert event is not None
    return event


def send(call: callers.Call, order_id: int, words: list[str]) -> None:
    for each in words:
        request = update(order_id, payment_status=each.rstrip("!"))
        if each.endswith("!"):
            refusal(call, request)
        else:
            call(request)


WORDS = ["paid", "pending!", "failed!", "refunded", "paid!", "disputed"]
CHANGES = ["paid", "refunded", "disputed"]


def test_refused_events_among_the_changes(watch: Watch, call: callers.Call, orders: Orders) -> None:
    """As they come, and after any of them; a message is as the record, and comes once."""
    order_id = orders.add()
    with watch(of(order_id)) as stream, watch(of(order_id, refused=False)) as changes:
        assert next(stream).event_id
        assert next(changes).event_id
        found = []
        for each in WORDS:
            send(call, order_id, [each, each] if each.endswith("!") else [each])
            found.append(next(stream))
        assert list(map(word, found)) == WORDS
        assert [word(next(changes)) for _ in CHANGES] == CHANGES
    (record, *_) = call(ListRefusedPaymentEventsRequest(order_id=order_id)).events
    event = found[4].refused
    assert event is not None
    assert record.times == 2
    event.times, event.last_refused_at = record.times, record.last_refused_at
    assert event == record

    for number, after in enumerate(found[:-1], start=1):
        with watch(of(order_id, after=after.event_id)) as stream:
            assert next(stream).event_id == after.event_id
            assert [word(next(stream)) for _ in WORDS[number:]] == WORDS[number:]


def test_what_was_missed_comes_by_its_time(
    watch: Watch, call: callers.Call, orders: Orders
) -> None:
    order_id = orders.add()
    with watch(of(order_id, refused=False)) as stream:
        start = next(stream).event_id
    send(call, order_id, WORDS)
    with watch(of(order_id, after=start)) as stream:
        next(stream)
        assert [word(next(stream)) for _ in WORDS] == WORDS
    with watch(of(order_id, after=start, refused=False)) as stream:
        next(stream)
        assert [word(next(stream)) for _ in CHANGES] == CHANGES


def test_a_storefront(watch: Watch, call: callers.Call, orders: Orders) -> None:
    storefront = 1_000_000 + orders.add()
    request = WatchOrderPaymentsRequest(storefront_id=storefront, include_refused=True)
    with watch(request) as stream:
        next(stream)
        for each in (storefront + 1, storefront):
            order_id = orders.add(storefront_id=each)
            send(call, order_id, ["paid", "pending!"])
        assert word(next(stream)) == "paid"
        event = refused(stream)
    assert (event.order_id, event.storefront_id) == (order_id, storefront)


def latencies(call: callers.Call, order_id: int, stream: Stream) -> list[float]:
    times = []
    for number in range(9):
        refusal(call, update(order_id, payment_status="pending", payment_session_id=f"{number}"))
        start = time.monotonic()
        assert refused(stream).requested is not None
        times.append(time.monotonic() - start)
    return times


def test_refused_events_arrive_without_polling_delay(
    running: Service, call: callers.Call, orders: Orders
) -> None:
    order_id = orders.add(payment_status="paid", payment_state=9)
    with grpcio(running.base_url) as watch, watch(of(order_id)) as stream:
        next(stream)
        assert statistics.median(latencies(call, order_id, stream)) < 0.1


def test_refused_events_through_another_process(tmp_path: Path, database_url: str) -> None:
    """Its notification, and not the next poll, makes this one read."""
    order_id = Orders(database_url).add(payment_status="paid", payment_state=9)
    with (
        service.running(database_url, tmp_path / "log") as running,
        service.running(database_url, tmp_path / "log 2") as other,
        callers.grpcio(other.base_url) as call,
        grpcio(running.base_url) as watch,
        watch(of(order_id)) as stream,
    ):
        next(stream)
        assert statistics.median(latencies(call, order_id, stream)) < 0.1
