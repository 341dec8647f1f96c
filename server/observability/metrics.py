"""What is counted and measured, for Prometheus.

Several workers count together, in files that they share. Whatever belongs to one of them alone, as
how many connections its pool has in use, is looked at when Prometheus asks it, and once a second
for the case that it asks another one.
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
"""Upper limits of the histogram's buckets."""


class Metrics:
    """The metrics of the service, and the page that shows them."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a series more for each counter
        self._registry = CollectorRegistry()
        self._gauges: list[tuple[Gauge, Callable[[], float]]] = []
        # prometheus_client reads the same variable.
        self._is_shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if not self._is_shared:
            ProcessCollector(registry=self._registry)
        self.rpcs = Counter(
            "listings_rpcs",
            "RPCs that have ended, by method, code and protocol.",
            ["method", "code", "protocol"],
            registry=self._registry,
        )
        self.rpc_seconds = Histogram(
            "listings_rpc_duration_seconds",
            "How long RPCs took, streams to their end.",
            ["method", "protocol"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.queue_drops = Counter(
            "listings_queue_drops",
            "RPCs refused because too many were waiting.",
            registry=self._registry,
        )
        self.updates = Counter(
            "listings_payment_updates",
            "Updates of payments, by what became of them.",
            ["outcome"],
            registry=self._registry,
        )

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Show what ``read`` returns, for several workers the sum of it."""
        gauge = Gauge(name, documentation, registry=self._registry, multiprocess_mode="livesum")
        self._gauges.append((gauge, read))

    def look(self) -> None:
        """Set the gauges to what they show now."""
        for gauge, read in self._gauges:
            gauge.set(read())

    async def page(self, _request: Request) -> Response:
        """Return the metrics in the text format of Prometheus."""
        self.look()
        registry = self._registry
        if self._is_shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
