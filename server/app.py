"""The composition root: handlers, interceptors and mounts are wired here, and nowhere else."""

from collections.abc import Callable
from contextlib import nullcontext
from enum import Flag, auto
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from connectrpc.codec import Codec
from connectrpc.interceptor import Interceptor
from connectrpc.server import ConnectASGIApplication
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from persistence.database import Database
from persistence.history import PaymentHistory
from persistence.orders import OrderRepository
from persistence.payment_updates import Guard
from persistence.refused_event_log import RefusedEventLog
from persistence.status_words import StatusWords
from persistence.watch import ChangeFeed
from server.auth.bind_policy import is_local_only
from server.auth.claims import ClaimNames
from server.auth.host_policy import HostPolicy
from server.auth.jwt import KeyProvider, TokenVerifier
from server.auth.permissions import required_permissions
from server.gen.grpc_health.v1.health_connect import Health, HealthASGIApplication
from server.gen.listings.v1.orders_connect import OrderService, OrderServiceASGIApplication
from server.observability.metrics import Metrics
from server.observability.outcomes import UpdateOutcomes
from server.origins import Origins
from server.rpc.binary_codec import BinaryCodec
from server.rpc.callers import TrustedProxies
from server.rpc.cors import CorsMiddleware
from server.rpc.error_trailers import ErrorTrailersMiddleware
from server.rpc.errors import streaming_paths, writing_paths
from server.rpc.fast_path import FastPath, create_fast_path
from server.rpc.gauges import add_gauges
from server.rpc.grpc_web_text import GrpcWebTextMiddleware
from server.rpc.health import HealthHandler, HealthPages, Readiness
from server.rpc.host_check import HostCheck, Reject
from server.rpc.index_page import index_page
from server.rpc.interceptors.access_log import AccessLog, bind_request
from server.rpc.interceptors.authorization import AuthorizationInterceptor
from server.rpc.interceptors.deadline import DeadlineInterceptor
from server.rpc.interceptors.errors import ErrorInterceptor
from server.rpc.interceptors.field_permissions import field_permissions
from server.rpc.interceptors.request_hooks import RequestHooksInterceptor
from server.rpc.interceptors.request_id import RequestIdInterceptor
from server.rpc.interceptors.shutdown import ShutdownInterceptor
from server.rpc.interceptors.token_expiry import TokenExpiryInterceptor
from server.rpc.interceptors.unread import UnreadInterceptor
from server.rpc.interceptors.validation import validate
from server.rpc.interceptors.watch_limit import WatchLimitInterceptor
from server.rpc.json_codec import StrictJSONCodec
from server.rpc.load_shedding import (
    GrpcRejection,
    LoadShedder,
    LoadSheddingMiddleware,
    Rejections,
)
from server.rpc.order_service import OrderHandler
from server.rpc.reflection import reflection_services
from server.rpc.unrouted import UnroutedMiddleware
from server.settings import Settings

if TYPE_CHECKING:
    from server.observability.tracing import Telemetry

_LOGGED: Final = (OrderService.desc(), Health.desc())


class Application(NamedTuple):
    """The service, and what the server that runs it needs of it."""

    asgi: Starlette
    reject: Reject
    """Answers an HTTP/2 request in place of ``asgi``, by headers alone, or returns None."""
    fast_path: FastPath | None
    """Begins a call over HTTP/2 in place of ``asgi``, or returns None; None where it is off."""
    every_second: Callable[[], object]
    """To be called about once a second, and when the process stops."""


class _Services(Flag):
    """The services whose RPCs pass an interceptor."""

    ORDERS = auto()
    HEALTH = auto()
    REFLECTION = auto()
    ALL = ORDERS | HEALTH | REFLECTION


def create_app(  # noqa: PLR0913 - its parts
    settings: Settings,
    database: Database,
    feed: ChangeFeed,
    readiness: Readiness,
    *,
    words: StatusWords | None = None,
    processes: int = 1,
    keys: KeyProvider | None = None,
    telemetry: "Telemetry | None" = None,
) -> Application:
    """Return the service, on parts that its caller opens and closes.

    ``words`` are what payment statuses mean, those of ``StatusWords.builtin`` by default.
    ``processes`` is how many serve this database on this machine. Without ``keys``, every caller
    has every permission.
    """
    metrics = Metrics()
    proxies = TrustedProxies(settings.trusted_proxies)
    access_log = AccessLog(metrics, settings.log_sample, _LOGGED, quiet="grpc.", proxies=proxies)
    verifier = None if keys is None else _verifier(settings, keys)
    permissions = required_permissions()
    authorization = AuthorizationInterceptor(permissions, settings.public, verifier)
    check_fields = field_permissions(permissions, OrderService.desc())
    traced: list[tuple[Interceptor, _Services]] = []
    if telemetry is not None:
        traced = [
            (telemetry.interceptor, _Services.ORDERS),
            # Inside of the span that has the id.
            (RequestHooksInterceptor(telemetry.bind_trace_id), _Services.ORDERS),
        ]

    # In the order in which a call meets them. The metadata interceptors at the front
    # (on_start and on_end) run before connectrpc reads the request, and end in reverse order; the
    # others wrap the method, the first of them outermost.
    chain: list[tuple[Interceptor, _Services]] = [
        (access_log, _Services.ALL),  # ends last, and logs the error that the caller gets
        (
            UnreadInterceptor(settings.max_request_bytes),
            _Services.ALL,
        ),  # changes an error, which the log is to have
        (
            RequestIdInterceptor(),
            _Services.ORDERS,
        ),  # so that a call without a permission has its id
        (authorization, _Services.ALL),  # before the request costs anything
        *traced,  # only calls that are authorized make spans
        (
            ErrorInterceptor(),
            _Services.ORDERS | _Services.HEALTH,
        ),  # translates what all below it raise
        (TokenExpiryInterceptor(settings.jwt_leeway), _Services.ALL),
        (ShutdownInterceptor(readiness.stopping), _Services.REFLECTION),
        (
            WatchLimitInterceptor(settings.max_watches_per_caller, proxies),
            _Services.ORDERS | _Services.HEALTH,
        ),
        # Masks a request in the log first: a violation of a rule is logged, too.
        (RequestHooksInterceptor(bind_request, check_fields, validate), _Services.ORDERS),
        (
            DeadlineInterceptor(settings.statement_timeout),
            _Services.ORDERS,
        ),  # the method's time alone
    ]
    codecs: list[Codec[Any, Any]] = [BinaryCodec(), StrictJSONCodec()]

    def serve(
        application: Callable[..., ConnectASGIApplication[Any]], handler: object, service: _Services
    ) -> ConnectASGIApplication[Any]:
        return application(
            handler,
            interceptors=[each for each, services in chain if service in services],
            codecs=codecs,
            read_max_bytes=settings.max_request_bytes,
        )

    repository = OrderRepository(
        database,
        words=words,
        guard=Guard(settings.status_guard),
        processes=processes,
        batch_span=nullcontext if telemetry is None else telemetry.batch_span,
        committed=feed.notify,
    )
    outcomes = UpdateOutcomes(metrics.updates, metrics.refused_events)
    history, refused = PaymentHistory(database, words), RefusedEventLog(database)
    handler = OrderHandler(repository, history, refused, feed, outcomes)
    orders = serve(OrderServiceASGIApplication, handler, _Services.ORDERS)
    others = [
        serve(HealthASGIApplication, HealthHandler(readiness), _Services.HEALTH),
        *(serve(*each, _Services.REFLECTION) for each in reflection_services()),
    ]
    shedder = LoadShedder(settings.pool_size, settings.queue_size)
    rejections = Rejections(shedder, writing_paths(OrderService.desc()), access_log.count_shed)
    streams = streaming_paths(OrderService.desc())

    def with_messages(application: ASGIApp) -> ASGIApp:
        return UnroutedMiddleware(
            ErrorTrailersMiddleware(application),
            access_log.log_unrouted,
            settings.max_request_bytes,
            streams,
        )

    reject: Reject = GrpcRejection(shedder, orders.path, streams, rejections)
    polled: list[Callable[[], object]] = [metrics.poll, shedder.poll]
    middleware = [
        Middleware(CorsMiddleware, Origins(settings.cors_origins), settings.cors_headers),
        Middleware(GrpcWebTextMiddleware),
    ]
    if is_local_only(settings):
        policy = HostPolicy((settings.host, *settings.allowed_hosts))
        hosts = HostCheck(policy, access_log.count_refused)
        reject = hosts.before(reject)
        middleware.append(Middleware(hosts.middleware))
        polled.append(hosts.poll)
    pages = HealthPages(readiness)
    app = Starlette(
        routes=[
            Mount(
                orders.path,
                LoadSheddingMiddleware(with_messages(orders), shedder, streams, rejections),
            ),
            *(Mount(service.path, with_messages(service)) for service in others),
            Route("/", index_page),
            Route("/livez", pages.live),
            Route("/readyz", pages.ready),
            Route("/metrics", authorization.guard("/metrics", metrics.page)),
            Mount("/", with_messages(Response(status_code=404))),
        ],
        middleware=middleware,
    )
    # Starlette would redirect targets that are not a path, and fails if their query is not text.
    app.router.redirect_slashes = False
    add_gauges(metrics, access_log, database, feed, readiness)

    def every_second() -> None:
        for poll in polled:
            poll()

    fast_path = None
    if settings.grpc_fast_path:
        fast_path = create_fast_path(orders, shedder, settings.max_request_bytes)
    return Application(
        app,
        reject,
        fast_path,
        every_second,
    )


def _verifier(settings: Settings, keys: KeyProvider) -> TokenVerifier:
    assert settings.jwt_issuer and settings.jwt_audience  # noqa: S101 PT018 - they go with the keys
    return TokenVerifier(
        keys,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        leeway=settings.jwt_leeway,
        names=ClaimNames(settings.jwt_permissions_claim, settings.jwt_storefronts_claim),
    )
