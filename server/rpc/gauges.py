"""Gauges of the present state of a process."""

from persistence.database import Database
from persistence.watch import ChangeFeed
from server.observability.metrics import Metrics
from server.rpc.health import Readiness
from server.rpc.interceptors.access_log import AccessLog


def add_gauges(
    metrics: Metrics,
    access_log: AccessLog,
    database: Database,
    feed: ChangeFeed,
    readiness: Readiness,
) -> None:
    """Add gauges to ``metrics``: of calls, watchers, the pool and readiness."""
    gauge = metrics.gauge
    gauge("listings_rpcs_in_flight", "RPCs under way.", lambda: access_log.in_flight)
    gauge("listings_watchers", "Streams of WatchOrderPayments.", lambda: feed.watchers)
    gauge(
        "listings_pool_size",
        "Connections to PostgreSQL that calls may use.",
        lambda: database.max_connections,
    )
    gauge(
        "listings_pool_in_use",
        "Connections to PostgreSQL that calls use.",
        lambda: database.in_use,
    )
    gauge(
        "listings_pool_waiting",
        "Statements that wait for a connection to PostgreSQL.",
        lambda: database.waiting,
    )
    gauge("listings_ready", "Processes that are ready.", lambda: readiness.fault is None)
