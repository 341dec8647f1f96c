"""Metrics in the text format of Prometheus.

Several workers count in files that they share. A gauge is of one worker, such as the connections of
its pool: each worker sets its gauges at a scrape that it answers, and once a second, for the
scrapes that other workers answer.
"""

import os
from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.requests import Request
from starlette.responses import Response

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram's buckets."""


class Metrics:
    """The metrics of the service, and the page that shows them."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # one more series a counter
        self._registry = CollectorRegistry()
        self._gauges: list[tuple[Gauge, Callable[[], float]]] = []
        # By this variable prometheus_client itself chooses files that processes share.
        self._is_shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if not self._is_shared:
            ProcessCollector(registry=self._registry)
        self.rpcs = Counter(
            "listings_rpcs",
            "Completed RPCs, by method, code and protocol.",
            ["method", "code", "protocol"],
            registry=self._registry,
        )
        self.rpc_seconds = Histogram(
            "listings_rpc_duration_seconds",
            "Duration of RPCs; of a stream, until its end.",
            ["method", "protocol"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.queue_drops = Counter(
            "listings_queue_drops",
            "RPCs rejected because the queue was full.",
            registry=self._registry,
        )
        self.updates = Counter(
            "listings_payment_updates",
            "Updates of payments, by outcome.",
            ["outcome"],
            registry=self._registry,
        )
        self.refused_events = Counter(
            "listings_refused_payment_events",
            "Payment events on record as refused, by reason, and whether they were written "
            "because the guard is in shadow mode.",
            ["reason", "written"],
            registry=self._registry,
        )

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Export the value of ``read`` as a gauge; for several workers, the sum of theirs."""
        gauge = Gauge(name, documentation, registry=self._registry, multiprocess_mode="livesum")
        self._gauges.append((gauge, read))

    def poll(self) -> None:
        """Set all gauges to their present values."""
        for gauge, read in self._gauges:
            gauge.set(read())

    async def page(self, _request: Request) -> Response:
        """Answer a scrape with all metrics, of all workers."""
        self.poll()
        registry = self._registry
        if self._is_shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
