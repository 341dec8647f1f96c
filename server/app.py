"""The composition root: the parts of the service are wired together here, and nowhere else."""

from connectrpc.codec import proto_binary_codec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

from persistence.database import Database
from persistence.feed import PaymentFeed
from persistence.ledger import PaymentLedger
from persistence.orders import OrderRepository
from server.admission import Admission, Admitted, GrpcGate
from server.answers import PreparedError
from server.codec import StrictJSONCodec
from server.deadlines import DeadlineInterceptor
from server.errors import ErrorInterceptor, overloaded
from server.gen.grpc_health.v1.health_connect import HealthASGIApplication
from server.gen.listings.v1.orders_connect import OrderServiceASGIApplication
from server.health import HealthHandler, HealthPages, Readiness
from server.http2 import TurnAway
from server.orders import OrderHandler
from server.outcomes import UpdateOutcomes
from server.reflection import reflection
from server.refusals import ExplainRefusals
from server.requests import RequestIdInterceptor
from server.settings import Settings
from server.validation import ValidationInterceptor


def create_app(
    settings: Settings, database: Database, feed: PaymentFeed, readiness: Readiness
) -> tuple[Starlette, TurnAway]:
    """Return the service as one ASGI application, on parts that its caller opens.

    With it comes what answers for it when it has too much to do.
    """
    metrics = CollectorRegistry()
    watchers = Gauge("listings_watchers", "Streams of WatchOrderPayments.", registry=metrics)
    watchers.set_function(lambda: feed.watchers)
    orders = OrderServiceASGIApplication(
        OrderHandler(
            OrderRepository(database, guard_status=settings.status_guard, committed=feed.committed),
            PaymentLedger(database),
            feed,
            UpdateOutcomes(metrics),
        ),
        interceptors=[
            RequestIdInterceptor(),
            ErrorInterceptor(),
            ValidationInterceptor(),
            DeadlineInterceptor(settings.statement_timeout),
        ],
        codecs=[proto_binary_codec(), StrictJSONCodec()],
        read_max_bytes=settings.max_request_bytes,
    )
    health = HealthASGIApplication(
        HealthHandler(readiness),
        interceptors=[ErrorInterceptor()],
        codecs=[proto_binary_codec(), StrictJSONCodec()],
        read_max_bytes=settings.max_request_bytes,
    )
    admission = Admission(settings.pool_size, settings.queue_size)
    refusal = PreparedError(overloaded())
    others = (health, *reflection(readiness.stopping, settings.max_request_bytes))
    pages = HealthPages(readiness)
    app = Starlette(
        routes=[
            Mount(orders.path, app=Admitted(ExplainRefusals(orders), admission, refusal)),
            *(Mount(service.path, app=ExplainRefusals(service)) for service in others),
            Route("/livez", pages.live),
            Route("/readyz", pages.ready),
            Route("/metrics", lambda _: report(metrics)),
            Mount("/", app=ExplainRefusals(Response(status_code=404))),
        ]
    )
    return app, GrpcGate(admission, orders.path, refusal)


def report(metrics: CollectorRegistry) -> Response:
    """Return the metrics in the format of Prometheus."""
    return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)
