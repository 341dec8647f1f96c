"""The stack of ``server.app``, with the suite's service in place of ``OrderService``.

Left out are what needs a database, tokens or a collector of traces, and what is of orders alone.
"""

import asyncio
from typing import Any, Final

from connectrpc.codec import Codec
from connectrpc.interceptor import Interceptor
from protobuf import Registry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from server.app import Application
from server.observability.metrics import Metrics
from server.origins import Origins
from server.rpc.binary_codec import BinaryCodec
from server.rpc.callers import TrustedProxies
from server.rpc.cors import CorsMiddleware
from server.rpc.error_trailers import ErrorTrailersMiddleware
from server.rpc.errors import streaming_paths, writing_paths
from server.rpc.fast_path import create_fast_path
from server.rpc.grpc_web_text import GrpcWebTextMiddleware
from server.rpc.index_page import index_page
from server.rpc.interceptors.access_log import AccessLog, bind_request
from server.rpc.interceptors.authorization import AuthorizationInterceptor
from server.rpc.interceptors.deadline import DeadlineInterceptor
from server.rpc.interceptors.errors import ErrorInterceptor
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
from server.rpc.unrouted import UnroutedMiddleware
from tests.conformance.gen.connectrpc.conformance.v1 import service_pb
from tests.conformance.gen.connectrpc.conformance.v1.service_connect import (
    ConformanceService,
    ConformanceServiceASGIApplication,
)
from tests.conformance.service import ConformanceHandler

_CALLS: Final = 100  # in flight, of which as many again may wait
_SECONDS: Final = 5.0  # longer than any delay of the suite


def create_app(max_request_bytes: int, stopping: asyncio.Event) -> Application:
    """Return the service; ``stopping`` is set when the process stops."""
    description = ConformanceService.desc()
    paths = {each.name: f"/{description.type_name}/{each.name}" for each in description.methods}
    access_log = AccessLog(Metrics(), 1.0, [description], quiet="grpc.", proxies=TrustedProxies())
    interceptors: list[Interceptor] = [
        access_log,
        UnreadInterceptor(max_request_bytes),
        RequestIdInterceptor(),
        AuthorizationInterceptor(dict.fromkeys(paths.values(), "conformance"), (), None),
        ErrorInterceptor(),
        TokenExpiryInterceptor(0.0),
        ShutdownInterceptor(stopping),
        WatchLimitInterceptor(0, TrustedProxies()),
        RequestHooksInterceptor(bind_request, validate),
        DeadlineInterceptor(_SECONDS),
    ]
    codecs: list[Codec[Any, Any]] = [BinaryCodec(), StrictJSONCodec(Registry(service_pb.desc()))]
    service = ConformanceServiceASGIApplication(
        ConformanceHandler(),
        interceptors=interceptors,
        codecs=codecs,
        read_max_bytes=max_request_bytes,
    )
    shedder = LoadShedder(_CALLS, _CALLS)
    rejections = Rejections(shedder, writing_paths(description), access_log.count_shed)
    streams = streaming_paths(description)

    def with_messages(application: ASGIApp) -> ASGIApp:
        return UnroutedMiddleware(
            ErrorTrailersMiddleware(application), access_log.log_unrouted, max_request_bytes
        )

    app = Starlette(
        routes=[
            Mount(
                service.path,
                LoadSheddingMiddleware(with_messages(service), shedder, streams, rejections),
            ),
            Route("/", index_page),
            Mount("/", with_messages(Response(status_code=404))),
        ],
        middleware=[
            Middleware(CorsMiddleware, Origins(["https://localhost"])),
            Middleware(GrpcWebTextMiddleware),
        ],
    )
    app.router.redirect_slashes = False
    return Application(
        app,
        GrpcRejection(shedder, service.path, streams, rejections),
        create_fast_path(service, shedder, max_request_bytes),
        shedder.poll,
    )
