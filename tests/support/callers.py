"""A client of the service for each protocol that it supports."""

import base64
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
import httpx
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from google.rpc import status_pb2
from protobuf import Message
from pyqwest import HTTPVersion, SyncClient, SyncHTTPTransport

from server.gen.google.rpc import error_details_pb
from server.gen.listings.v1 import orders_pb
from server.gen.listings.v1.orders_connect import OrderServiceClientSync
from tests.support import grpc_web_text
from tests.support.certificates import Trust
from tests.support.codes import GRPC_CODES

PATH = "/listings.v1.OrderService/UpdateOrderPayment"


@dataclass
class Failure(Exception):
    """An error response of any protocol. ``code`` is in lower case, as in Connect."""

    code: str
    message: str
    details: tuple[Message[Any], ...] = ()


Call = Callable[[Message[Any]], Any]
"""Sends a request to the method that takes it and returns the response, or raises Failure."""

Caller = Callable[..., AbstractContextManager[Call]]
"""Connects to a base URL, by TLS if ``trust`` is given, and sends the headers with each call:
``(url, trust, **headers)``."""


def path(request: Message[Any]) -> str:
    """Return the path of the method that takes this request."""
    return f"/listings.v1.OrderService/{_method(request)}"


def response_type(request: Message[Any]) -> type[Message[Any]]:
    """Return the response type of the method that takes this request."""
    kind: type[Message[Any]] = getattr(orders_pb, f"{_method(request)}Response")
    return kind


def method_name(request: Message[Any]) -> str:
    """Return the name that connectrpc's clients give to the method that takes this request."""
    return re.sub("(?<!^)(?=[A-Z])", "_", _method(request)).lower()


def _method(request: Message[Any]) -> str:
    return type(request).__name__.removesuffix("Request")


@contextmanager
def grpcio(base_url: str, trust: Trust | None = None, **headers: str) -> Iterator[Call]:
    """gRPC by grpcio, the implementation that most callers use."""
    target = base_url.rpartition("/")[2]
    if trust:
        ca, cert, key = trust.pem()
        secrets = grpc.ssl_channel_credentials(ca, key, cert)
        opened = grpc.secure_channel(target, secrets)
    else:
        opened = grpc.insecure_channel(target)
    with opened as channel:

        def call(request: Message[Any]) -> Any:
            method = channel.unary_unary(
                path(request),
                request_serializer=type(request).to_binary,
                response_deserializer=response_type(request).from_binary,
            )
            try:
                return method(request, timeout=20, metadata=list(headers.items()))
            except grpc.RpcError as error:
                raise grpc_failure(error) from error

        yield call


def _connectrpc(protocol: ProtocolType, version: HTTPVersion, **options: bool) -> Caller:
    @contextmanager
    def connected(base_url: str, trust: Trust | None = None, **headers: str) -> Iterator[Call]:
        ca, cert, key = trust.pem() if trust else (None, None, None)
        http_client = SyncClient(
            SyncHTTPTransport(http_version=version, tls_ca_cert=ca, tls_cert=cert, tls_key=key)
        )
        with OrderServiceClientSync(base_url, protocol=protocol, http_client=http_client) as client:

            def call(request: Message[Any]) -> Any:
                try:
                    method = getattr(client, method_name(request))
                    return method(request, headers=headers, timeout_ms=20_000, **options)
                except ConnectError as error:
                    raise connect_failure(error) from error

            yield call

    return connected


def _json(version: int) -> Caller:
    @contextmanager
    def connected(base_url: str, trust: Trust | None = None, **headers: str) -> Iterator[Call]:
        with json_client(base_url, version, trust) as client:
            client.headers.update(headers)

            def call(request: Message[Any]) -> Any:
                response = client.post(path(request), content=request.to_json())
                if response.status_code != 200:
                    raise json_failure(response)
                return response_type(request).from_json(response.content)

            yield call

    return connected


def _grpc_web_text(version: int) -> Caller:
    @contextmanager
    def connected(base_url: str, trust: Trust | None = None, **headers: str) -> Iterator[Call]:
        with json_client(base_url, version, trust) as client:

            def call(request: Message[Any]) -> Any:
                binary = request.to_binary()
                try:
                    (response,) = grpc_web_text.messages(client, path(request), binary, headers)
                except grpc_web_text.StatusError as error:
                    raise grpc_web_failure(error) from error
                return response_type(request).from_binary(response)

            yield call

    return connected


def json_client(base_url: str, version: int = 1, trust: Trust | None = None) -> httpx.Client:
    """Return an HTTP client that sends JSON, over HTTP/1.1 or HTTP/2 by prior knowledge."""
    return httpx.Client(
        verify=trust.context() if trust else True,
        base_url=base_url,
        http1=version == 1,
        http2=version == 2,
        headers={"content-type": "application/json"},
        timeout=20,
        trust_env=False,
    )


def json_failure(response: httpx.Response) -> Failure:
    """Return the failure in a Connect error in JSON."""
    body = response.json()
    details = (
        detail_of(each["type"], _unpadded(each["value"])) for each in body.get("details", ())
    )
    return Failure(body["code"], body["message"], tuple(details))


def connect_failure(error: ConnectError) -> Failure:
    """Return the failure in an error of connectrpc."""
    details = (detail_of(each.type_name, each.message_bytes) for each in error.details)
    return Failure(error.code.value, error.message, tuple(details))


def grpc_failure(error: grpc.RpcError) -> Failure:
    """Return the failure in an error of grpcio."""
    details: tuple[Message[Any], ...] = ()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            details = tuple(detail_of(any_.type_url, any_.value) for any_ in status.details)
    return Failure(error.code().name.lower(), error.details() or "", details)


def grpc_web_failure(error: grpc_web_text.StatusError) -> Failure:
    """Return the failure in the trailers of gRPC-Web."""
    code = GRPC_CODES[int(error.trailers["grpc-status"])]
    binary = _unpadded(error.trailers.get("grpc-status-details-bin", ""))
    details = status_pb2.Status.FromString(binary).details
    return Failure(
        code,
        unquote(error.trailers.get("grpc-message", "")),
        tuple(detail_of(each.type_url, each.value) for each in details),
    )


def detail_of(type_url: str, value: bytes) -> Message[Any]:
    """Return the detail of an error."""
    name = type_url.rpartition("/")[2].rpartition(".")[2]
    kind: type[Message[Any]] = getattr(error_details_pb, name)
    return kind.from_binary(value)


def _unpadded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


CALLERS: dict[str, Caller] = {
    "grpcio": grpcio,
    "grpc-connectrpc": _connectrpc(ProtocolType.GRPC, HTTPVersion.HTTP2),
    "grpc-web": _connectrpc(ProtocolType.GRPC_WEB, HTTPVersion.HTTP1),
    "grpc-web-text": _grpc_web_text(1),
    "connect-binary": _connectrpc(ProtocolType.CONNECT, HTTPVersion.HTTP1),
    "connect-json-http1": _json(1),
    "connect-json-http2": _json(2),
}

READERS: dict[str, Caller] = CALLERS | {
    "connect-get": _connectrpc(ProtocolType.CONNECT, HTTPVersion.HTTP1, use_get=True),
}
"""For methods without side effects."""

PROTOCOLS: dict[str, str] = {
    "grpcio": "grpc",
    "grpc-connectrpc": "grpc",
    "grpc-web": "grpc_web",
    "grpc-web-text": "grpc_web",
}
"""The service's name for the protocol of the callers that do not use Connect."""
