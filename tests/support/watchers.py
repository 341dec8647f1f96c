"""A client that watches payments for each protocol that streams."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, cast

import grpc
from connectrpc.codec import Codec, proto_binary_codec, proto_json_codec
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from pyqwest import HTTPVersion, SyncClient, SyncHTTPTransport

from server.gen.listings.v1.orders_connect import OrderServiceClientSync
from server.gen.listings.v1.orders_pb import WatchOrderPaymentsRequest, WatchOrderPaymentsResponse
from tests.support import grpc_web_text
from tests.support.callers import (
    connect_failure,
    grpc_failure,
    grpc_web_failure,
    json_client,
    path,
)

Stream = Iterator[WatchOrderPaymentsResponse]
"""Yields the messages of a stream, or raises Failure."""

Watch = Callable[[WatchOrderPaymentsRequest], AbstractContextManager[Stream]]
"""Begins to watch; the end of the context cancels the call."""

Watcher = Callable[..., AbstractContextManager[Watch]]
"""Connects to a base URL, and sends some headers with each call: ``(url, **headers)``."""


@contextmanager
def grpcio(base_url: str, **headers: str) -> Iterator[Watch]:
    """gRPC by grpcio."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(base_url.removeprefix("http://"), options) as channel:
        method = channel.unary_stream(
            path(WatchOrderPaymentsRequest()),
            request_serializer=WatchOrderPaymentsRequest.to_binary,
            response_deserializer=WatchOrderPaymentsResponse.from_binary,
        )

        @contextmanager
        def watch(request: WatchOrderPaymentsRequest) -> Iterator[Stream]:
            call = method(request, timeout=60, metadata=list(headers.items()))

            def stream() -> Stream:
                try:
                    yield from call
                except grpc.RpcError as error:
                    raise grpc_failure(error) from error

            yield stream()
            call.cancel()

        yield watch


def _connectrpc(protocol: ProtocolType, version: HTTPVersion, codec: Codec) -> Watcher:
    @contextmanager
    def connected(base_url: str, **headers: str) -> Iterator[Watch]:
        http_client = SyncClient(SyncHTTPTransport(http_version=version))
        with OrderServiceClientSync(
            base_url, protocol=protocol, http_client=http_client, codec=codec
        ) as client:

            @contextmanager
            def watch(request: WatchOrderPaymentsRequest) -> Iterator[Stream]:
                responses = client.watch_order_payments(request, headers=headers, timeout_ms=60_000)
                with closing(cast("Any", responses)):

                    def stream() -> Stream:
                        try:
                            yield from responses
                        except ConnectError as error:
                            raise connect_failure(error) from error

                    yield stream()

            yield watch

    return connected


@contextmanager
def _grpc_web_text(base_url: str, **headers: str) -> Iterator[Watch]:
    with json_client(base_url) as client:

        @contextmanager
        def watch(request: WatchOrderPaymentsRequest) -> Iterator[Stream]:
            binary = request.to_binary()
            with closing(
                grpc_web_text.messages(client, path(request), binary, headers)
            ) as messages:

                def stream() -> Stream:
                    try:
                        yield from map(WatchOrderPaymentsResponse.from_binary, messages)
                    except grpc_web_text.StatusError as error:
                        raise grpc_web_failure(error) from error

                yield stream()

        yield watch


_BINARY, _JSON = proto_binary_codec(), proto_json_codec()

WATCHERS: dict[str, Watcher] = {
    "grpcio": grpcio,
    "grpc-connectrpc": _connectrpc(ProtocolType.GRPC, HTTPVersion.HTTP2, _BINARY),
    "grpc-web": _connectrpc(ProtocolType.GRPC_WEB, HTTPVersion.HTTP1, _BINARY),
    "grpc-web-text": _grpc_web_text,
    "connect-binary": _connectrpc(ProtocolType.CONNECT, HTTPVersion.HTTP2, _BINARY),
    "connect-json": _connectrpc(ProtocolType.CONNECT, HTTPVersion.HTTP1, _JSON),
}
