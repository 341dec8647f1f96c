"""Traces of updates that share a batch: each call is found from its statement, and the reverse."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support import service
from tests.support.callers import CALLERS, Failure
from tests.support.collector import (
    CALLER_SPAN,
    ENDPOINT,
    ERROR,
    SPAN_OF_AN_UPDATE,
    TRACE,
    Collector,
    attributes,
)
from tests.support.orders import Orders
from tests.support.service import Service


def updated_by_many(
    running: Service, requests: list[UpdateOrderPaymentRequest], **headers: str
) -> list[bool]:
    """Call with 32 in flight at a time, and return for each whether it succeeded."""

    def succeeds(request: UpdateOrderPaymentRequest) -> bool:
        with suppress(Failure):
            return bool(call(request).success)
        return False

    with CALLERS["grpcio"](running.base_url, **headers) as call, ThreadPoolExecutor(32) as pool:
        return list(pool.map(succeeds, requests))


def transactions(orders: Orders) -> int:
    statement = "SELECT count(DISTINCT transaction_id) FROM order_payment_events"
    return int(orders.value(statement))


@dataclass
class Spans:
    """The spans of updates, by span id."""

    calls: dict[bytes, Any]
    batches: dict[bytes, Any]
    statements: list[Any]
    """The spans of UPDATE statements."""

    @classmethod
    def of(cls, collector: Collector) -> "Spans":
        return cls(
            {span.span_id: span for span in collector.spans(SPAN_OF_AN_UPDATE)},
            {span.span_id: span for span in collector.spans("BATCH UPDATE")},
            [
                span
                for span in collector.spans()
                if attributes(span).get("db.statement", "").startswith('UPDATE "orders" SET')
            ],
        )

    @property
    def made(self) -> "Spans":
        """The spans without those of batches that were rolled back. On a slow machine, some are."""
        failed = {name for name, batch in self.batches.items() if batch.status.code == ERROR}
        return Spans(
            self.calls,
            {name: batch for name, batch in self.batches.items() if name not in failed},
            [each for each in self.statements if each.parent_span_id not in failed],
        )

    @property
    def parents(self) -> list[bytes]:
        """The parent span ids of the statements."""
        return [span.parent_span_id for span in self.statements]

    @property
    def linked(self) -> list[bytes]:
        """The spans that batches are linked to."""
        return [link.span_id for batch in self.batches.values() for link in batch.links]


def test_each_concurrent_update_is_traced_to_its_statement(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    order_ids = [Orders(database_url).add() for _ in range(64)]
    with service.running(database_url, tmp_path / "log") as running:
        requests = [
            UpdateOrderPaymentRequest(order_id=each, payment_status="paid") for each in order_ids
        ]
        assert all(updated_by_many(running, requests))
        assert running.stop() == 0
    spans = Spans.of(collector).made
    assert len(spans.calls) == len(order_ids)
    # The parent of its statement, or linked from exactly one batch.
    assert sorted([*(set(spans.parents) - spans.batches.keys()), *spans.linked]) == sorted(
        spans.calls
    )


def test_a_batch_has_a_trace_of_its_own_and_links_to_its_calls(
    monkeypatch: pytest.MonkeyPatch, collector: Collector, database_url: str, tmp_path: Path
) -> None:
    orders = Orders(database_url)
    orders.slow_down(0.02)  # so that updates form batches
    requests = [
        UpdateOrderPaymentRequest(order_id=orders.add(), payment_status="paid") for _ in range(64)
    ]
    with service.running(database_url, tmp_path / "log") as running:
        assert all(updated_by_many(running, requests))
        assert running.stop() == 0
    spans = Spans.of(collector).made
    assert spans.batches
    # One statement and one transaction each.
    assert len(set(spans.parents)) == len(spans.statements) == transactions(orders)
    assert spans.parents.count(b"") == 0
    assert set(spans.parents) <= spans.batches.keys() | spans.calls.keys()
    for statement in spans.statements:
        parent = (spans.batches | spans.calls)[statement.parent_span_id]
        assert statement.trace_id == parent.trace_id
    for batch in spans.batches.values():
        assert batch.parent_span_id == b""
        assert batch.trace_id not in {call.trace_id for call in spans.calls.values()}
        for link in batch.links:
            assert link.trace_id == spans.calls[link.span_id].trace_id
        assert attributes(batch)["db.operation.name"] == "BATCH UPDATE"
        (size,) = [each for each in batch.attributes if each.key == "db.operation.batch.size"]
        assert size.value.int_value == len(batch.links) > 1

    # Without traces, updates share transactions as well.
    monkeypatch.delenv(ENDPOINT)
    traced = len(spans.statements)
    with service.running(database_url, tmp_path / "log") as running:
        assert all(updated_by_many(running, requests))
        assert running.stop() == 0
    assert max(traced, transactions(orders) - traced) < len(requests)


def test_a_batch_that_is_rolled_back(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    """Each call then has a statement of its own, besides its batch. No identifier is sent."""
    orders = Orders(database_url)
    orders.slow_down(0.02)
    requests = [
        UpdateOrderPaymentRequest(order_id=orders.add(), payment_idempotency_key="evt_secret_key")
        for _ in range(32)
    ]
    with service.running(database_url, tmp_path / "log") as running:
        assert sum(updated_by_many(running, requests)) == 1
        assert running.stop() == 0
    spans = Spans.of(collector)
    failed = [span for span in spans.batches.values() if span.status.code == ERROR]
    assert {attributes(span)["error.type"] for span in failed} == {"RolledBack"}
    assert {link.span_id for span in failed for link in span.links} <= set(spans.parents)
    assert [span for span in collector.spans() if span.events or span.status.message] == []
    assert b"evt_secret_key" not in b"".join(body for _, body in collector.bodies)


@pytest.mark.parametrize("sampled", [True, False])
def test_a_batch_is_sampled_if_its_calls_are(
    monkeypatch: pytest.MonkeyPatch,
    collector: Collector,
    database_url: str,
    tmp_path: Path,
    sampled: bool,
) -> None:
    """Although the sampler decides otherwise for a trace without a parent, as a batch's is."""
    sampler = "parentbased_always_off" if sampled else "parentbased_always_on"
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    orders = Orders(database_url)
    orders.slow_down(0.02)
    requests = [
        UpdateOrderPaymentRequest(order_id=orders.add(), payment_status="paid") for _ in range(32)
    ]
    with service.running(database_url, tmp_path / "log") as running:
        traceparent = f"00-{TRACE}-{CALLER_SPAN}-{sampled:02}"
        assert all(updated_by_many(running, requests, traceparent=traceparent))
        assert running.stop() == 0
    spans = Spans.of(collector).made
    assert bool(spans.batches) == bool(spans.calls) == sampled
    assert len(spans.statements) == (transactions(orders) if sampled else 0)
