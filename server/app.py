"""The composition root: the parts of the service are wired together here, and nowhere else."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from connectrpc.codec import Codec, proto_binary_codec
from connectrpc.interceptor import Interceptor
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

from persistence.database import Database
from persistence.history import PaymentLedger
from persistence.orders import OrderRepository
from persistence.watch import PaymentFeed
from server.auth.claims import ClaimNames
from server.auth.jwt import KeyProvider, TokenVerifier
from server.auth.permissions import required_permissions
from server.gen.grpc_health.v1.health_connect import Health, HealthASGIApplication
from server.gen.listings.v1.orders_connect import OrderService, OrderServiceASGIApplication
from server.http.h2 import TurnAway
from server.observability.metrics import Metrics
from server.observability.outcomes import UpdateOutcomes
from server.rpc.cors import cors
from server.rpc.errors import ErrorInterceptor, overloaded
from server.rpc.fast_path import DirectMethods
from server.rpc.gauges import show_state
from server.rpc.health import HealthHandler, HealthPages, Readiness
from server.rpc.interceptors.access_log import Calls, take_note
from server.rpc.interceptors.authorization import Authorize
from server.rpc.interceptors.compression import CompressionInterceptor
from server.rpc.interceptors.deadline import DeadlineInterceptor
from server.rpc.interceptors.on_request import OnRequest
from server.rpc.interceptors.request_id import RequestIdInterceptor
from server.rpc.interceptors.token_expiry import EndWithToken
from server.rpc.interceptors.validation import validate
from server.rpc.json_codec import StrictJSONCodec
from server.rpc.load_shedding import Admission, Admitted, GrpcGate
from server.rpc.order_service import OrderHandler
from server.rpc.reflection import reflection
from server.rpc.static_errors import PreparedError
from server.rpc.unrouted import ExplainRefusals
from server.settings import Settings

if TYPE_CHECKING:
    from server.observability.tracing import Telemetry

_SERVICES: Final = (OrderService.desc(), Health.desc())


class Application(NamedTuple):
    """The service, and what the server that runs it has to know of it."""

    asgi: Starlette
    turn_away: TurnAway
    """Answers in its place when it has too much to do."""
    direct: DirectMethods
    """Answers in its place what most calls are."""
    every_second: Callable[[], object]
    """To be called about once a second, and at the end."""


def create_app(  # noqa: PLR0913 - its parts
    settings: Settings,
    database: Database,
    feed: PaymentFeed,
    readiness: Readiness,
    *,
    keys: KeyProvider | None = None,
    telemetry: "Telemetry | None" = None,
) -> Application:
    """Return the service, on parts that its caller opens.

    Without ``keys``, everybody may do everything.
    """
    tracing: list[Interceptor] = []
    if telemetry is not None:
        tracing = [telemetry.interceptor, OnRequest(telemetry.bind_trace_id)]
    metrics = Metrics()
    calls = Calls(metrics, settings.log_sample, _SERVICES, quiet="grpc.")
    verifier = None if keys is None else _verifier(settings, keys)
    authorize = Authorize(required_permissions(), settings.public, verifier)
    end_with_token = EndWithToken(settings.jwt_leeway)
    compression = CompressionInterceptor()
    codecs: list[Codec[Any, Any]] = [proto_binary_codec(), StrictJSONCodec()]
    orders = OrderServiceASGIApplication(
        OrderHandler(
            OrderRepository(
                database,
                guard_status=settings.status_guard,
                together=not tracing,  # a span for each statement, below that of its RPC
                processes=settings.worker_count,
                committed=feed.committed,
            ),
            PaymentLedger(database),
            feed,
            UpdateOutcomes(metrics.updates),
        ),
        # The first four come before a request is read.
        interceptors=[
            calls,
            compression,
            RequestIdInterceptor(),
            authorize,
            *tracing,
            ErrorInterceptor(),
            end_with_token,
            OnRequest(take_note, validate),
            DeadlineInterceptor(settings.statement_timeout),
        ],
        codecs=codecs,
        read_max_bytes=settings.max_request_bytes,
    )
    health = HealthASGIApplication(
        HealthHandler(readiness),
        interceptors=[calls, compression, authorize, ErrorInterceptor(), end_with_token],
        codecs=codecs,
        read_max_bytes=settings.max_request_bytes,
    )
    before: list[Interceptor] = [calls, compression, authorize, end_with_token]
    limit = settings.max_request_bytes
    others = (health, *reflection(readiness.stopping, before, codecs, limit))
    admission = Admission(settings.pool_size, settings.queue_size)
    refusal = PreparedError(overloaded())
    show_state(metrics, calls, database, feed, readiness)
    pages = HealthPages(readiness)
    explain = partial(ExplainRefusals, refused=calls.refused)
    admitted = Admitted(explain(orders), admission, refusal, calls.dropped)
    app = Starlette(
        routes=[
            Mount(orders.path, app=admitted),
            *(Mount(service.path, app=explain(service)) for service in others),
            Route("/livez", pages.live),
            Route("/readyz", pages.ready),
            Route("/metrics", authorize.page("/metrics", metrics.page)),
            Mount("/", app=explain(Response(status_code=404))),
        ],
        middleware=cors(settings.cors_origins),
    )
    # It would be for targets that are no path, and fails where their query is no text.
    app.router.redirect_slashes = False
    direct = DirectMethods(orders, [f"{orders.path}/UpdateOrderPayment"], admission, limit)
    gate = GrpcGate(admission, orders.path, refusal, calls.dropped)

    def every_second() -> None:
        metrics.poll()
        admission.look()

    return Application(app, gate, direct, every_second)


def _verifier(settings: Settings, keys: KeyProvider) -> TokenVerifier:
    assert settings.jwt_issuer and settings.jwt_audience  # noqa: S101 PT018 - they go with the keys
    return TokenVerifier(
        keys,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        leeway=settings.jwt_leeway,
        names=ClaimNames(settings.jwt_permissions_claim, settings.jwt_storefronts_claim),
    )
