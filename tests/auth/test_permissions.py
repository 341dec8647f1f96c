"""Permissions: every method, with every kind of token, over every protocol."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jwt
import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext
from connectrpc_grpcreflect import ServerReflectionAlphaService, ServerReflectionService
from protobuf.wkt import Duration

from server.auth.permissions import required_permissions
from server.gen.grpc_health.v1.health_connect import Health
from server.gen.grpc_health.v1.health_pb import HealthCheckRequest, HealthListRequest
from server.gen.listings.v1.orders_connect import OrderService
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    GetOrderResponse,
    ListOrderPaymentEventsRequest,
    ListOrderPaymentsRequest,
    ListOrdersRequest,
    ListRefusedPaymentEventsRequest,
    ListStuckPaymentsRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from server.rpc.interceptors.authorization import AuthorizationInterceptor
from tests.support.codes import ASK, OK, Called
from tests.support.orders import Orders
from tests.support.reading import find
from tests.support.service import Service
from tests.support.tokens import ISSUER, READ, WRITE, Issuer, bearer, ec_key

MISSING_ORDER_ID: Final = 10**15
OURS, THEIRS = 3, 4  # storefronts

NOT_FOUND, UNIMPLEMENTED = "not_found", "unimplemented"
NO_GET: Final = "http 405"
UNAUTHENTICATED, DENIED = "unauthenticated", "permission_denied"


class Method(NamedTuple):
    path: str
    permission: str
    request: Callable[[int], Any]
    """A request about the order with this id."""
    streams: bool = False
    by_get: bool = True
    of_an_order: bool = False
    """Whether it is about one order, which may be out of the caller's scope."""


class _ListServices:
    """What grpcurl asks first: ``list_services``, field 7, of a ServerReflectionRequest."""

    def to_binary(self) -> bytes:
        return b"\x3a\x00"

    def to_json(self) -> str:
        return '{"listServices": ""}'


_ORDERS: Final = "/listings.v1.OrderService"
_HEALTH: Final = "/grpc.health.v1.Health"

METHODS: Final = (
    Method(
        f"{_ORDERS}/UpdateOrderPayment",
        WRITE,
        lambda order: UpdateOrderPaymentRequest(order_id=order, payment_status="paid"),
        by_get=False,
        of_an_order=True,
    ),
    Method(
        f"{_ORDERS}/GetOrder",
        READ,
        lambda order: GetOrderRequest(order_id=order),
        of_an_order=True,
    ),
    Method(
        f"{_ORDERS}/FindOrderByPayment",
        READ,
        lambda order: find("payment_intent_id", f"pi_{order}"),
        of_an_order=True,
    ),
    Method(f"{_ORDERS}/ListOrders", READ, lambda _: ListOrdersRequest()),
    Method(
        f"{_ORDERS}/ListStuckPayments",
        READ,
        lambda _: ListStuckPaymentsRequest(older_than=Duration(seconds=1)),
    ),
    Method(
        f"{_ORDERS}/ListOrderPaymentEvents",
        READ,
        lambda order: ListOrderPaymentEventsRequest(order_id=order),
        of_an_order=True,
    ),
    Method(
        f"{_ORDERS}/ListOrderPayments",
        READ,
        lambda order: ListOrderPaymentsRequest(order_id=order),
        of_an_order=True,
    ),
    Method(
        f"{_ORDERS}/ListRefusedPaymentEvents", READ, lambda _: ListRefusedPaymentEventsRequest()
    ),
    Method(
        f"{_ORDERS}/WatchOrderPayments",
        READ,
        lambda order: WatchOrderPaymentsRequest(order_ids=[order]),
        streams=True,
    ),
    Method(f"{_HEALTH}/Check", "health", lambda _: HealthCheckRequest(), by_get=False),
    Method(f"{_HEALTH}/List", "health", lambda _: HealthListRequest(), by_get=False),
    Method(
        f"{_HEALTH}/Watch", "health", lambda _: HealthCheckRequest(), streams=True, by_get=False
    ),
    *(
        Method(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            "reflection",
            lambda _: _ListServices(),
            streams=True,
            by_get=False,
        )
        for version in ("v1", "v1alpha")
    ),
)


NOW: Final = int(time.time())


def forged(issuer: Issuer) -> dict[str, dict[str, str]]:
    """Headers without a token, or without a valid one."""
    everything = (READ, WRITE, "health", "reflection", "metrics")
    claims = {"iss": ISSUER, "aud": "listings", "sub": "x", "exp": NOW + 600, "scope": READ}
    trusted = issuer.keys[0]
    tokens = {
        "expired": issuer.token(*everything, exp=NOW - 3600),
        "not yet valid": issuer.token(*everything, nbf=NOW + 3600),
        "without an end": issuer.token(*everything, exp=None),
        "without a subject": issuer.token(*everything, sub=None),
        "wrong issuer": issuer.token(*everything, iss="https://issuer.example.org"),
        "wrong audience": issuer.token(*everything, aud="billing"),
        "wrong key": issuer.token(*everything, key=ec_key("ec")),
        "unknown key": issuer.token(*everything, key=ec_key("nobody's")),
        "alg none": jwt.encode(claims, "", "none", {"kid": trusted.key_id}),
        "HS256 with the public key": _hs256(claims, trusted.public_pem(), trusted.key_id),
        "a limit that is none": issuer.token(*everything, storefronts="all"),
    }
    return {"no token": {}} | {name: bearer(token) for name, token in tokens.items()}


def _hs256(claims: dict[str, Any], secret: bytes, key_id: str) -> str:
    """Sign by HS256 with a public key as the secret (RFC 8725, 2.1). PyJWT refuses to."""
    header = {"alg": "HS256", "typ": "JWT", "kid": key_id}
    parts = [_base64url(json.dumps(each).encode()) for each in (header, claims)]
    signature = hmac.digest(secret, ".".join(parts).encode(), "sha256")
    return ".".join([*parts, _base64url(signature)])


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


HOLDERS: Final[dict[str, tuple[tuple[str, ...], list[int] | None]]] = {
    "reader": ((READ,), None),
    "writer": ((WRITE,), None),
    "reader of our storefront": ((READ,), [OURS]),
    "reader of their storefront": ((READ,), [THEIRS]),
    "reader of no storefront": ((READ,), []),
    "writer of their storefront": ((WRITE,), [THEIRS]),
    "probe": (("health",), None),
    "tool": (("reflection", "metrics"), None),
    "nobody": ((), None),
}
"""Permissions and storefronts of valid tokens."""


def called(method: Method, order_id: int) -> Called:
    request = method.request(order_id)
    return Called(method.path, request.to_binary(), request.to_json(), method.streams)


@pytest.fixture(scope="module")
def order_id(guarded: Service) -> int:
    """An order of our storefront, with a payment."""
    orders = Orders(guarded.database_url)
    order_id = orders.add(storefront_id=OURS)
    orders.change(order_id, payment_intent_id=f"pi_{order_id}")
    return order_id


@pytest.mark.parametrize("protocol", ASK)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.path.lstrip("/"))
class TestMatrix:
    def test_every_method_requires_a_valid_token(
        self, guarded: Service, issuer: Issuer, order_id: int, method: Method, protocol: str
    ) -> None:
        for name, headers in forged(issuer).items():
            code = ASK[protocol](guarded.base_url, called(method, order_id), headers)
            expected = UNAUTHENTICATED if is_served(method, protocol) else NO_GET
            assert code == expected, name

    def test_every_method_requires_its_permission(
        self, guarded: Service, issuer: Issuer, order_id: int, method: Method, protocol: str
    ) -> None:
        for name, (allowed, storefronts) in HOLDERS.items():
            headers = bearer(issuer.token(*allowed, **limit(storefronts)))
            code = ASK[protocol](guarded.base_url, called(method, order_id), headers)
            if not is_served(method, protocol):
                expected = NO_GET
            elif method.permission not in allowed:
                expected = DENIED
            elif method.of_an_order and storefronts is not None and OURS not in storefronts:
                expected = NOT_FOUND
            elif protocol == "get" and method.streams:  # streams are not served by GET
                expected = UNIMPLEMENTED
            else:
                expected = OK
            assert code == expected, name

    def test_permission_comes_before_existence_and_before_the_request_is_read(
        self, guarded: Service, issuer: Issuer, method: Method, protocol: str
    ) -> None:
        if not is_served(method, protocol):
            return
        headers = bearer(issuer.token("something:else"))
        nothing = called(method, MISSING_ORDER_ID)
        garbage = Called(method.path, b"\xff" * 9, "{", method.streams)
        for each in (nothing, garbage):
            assert ASK[protocol](guarded.base_url, each, headers) == DENIED
            assert ASK[protocol](guarded.base_url, each, {}) == UNAUTHENTICATED


def is_served(method: Method, protocol: str) -> bool:
    return protocol != "get" or method.by_get


def limit(storefronts: list[int] | None) -> dict[str, Any]:
    return {} if storefronts is None else {"storefronts": storefronts}


def test_the_table_has_every_method_that_is_served_and_no_other() -> None:
    served = {
        f"/{service.type_name}/{method.name}"
        for service in (
            *(OrderService.desc(), Health.desc()),
            *(ServerReflectionService.desc(), ServerReflectionAlphaService.desc()),
        )
        for method in service.methods
    }
    table = {
        path: permission
        for path, permission in required_permissions().items()
        if path != "/metrics" and "#" not in path
    }
    assert set(table) == served
    assert {method.path: method.permission for method in METHODS} == table


def test_each_permission_of_a_field_names_a_field_of_a_request() -> None:
    fields = {
        f"/{method.parent.type_name}/{method.name}#{field.name}"
        for method in OrderService.desc().methods
        for field in method.input.fields
    }
    named = {path: needed for path, needed in required_permissions().items() if "#" in path}
    assert named == {f"{_ORDERS}/UpdateOrderPayment#override_reason": "payments:override"}
    assert named.keys() <= fields


def test_a_method_that_is_not_in_the_table_is_refused() -> None:
    table = {
        path: needed for path, needed in required_permissions().items() if "GetOrder" not in path
    }
    authorize = AuthorizationInterceptor(table, (), None)

    def begin(name: str) -> None:
        info = MethodInfo(
            name=name,
            service_name=OrderService.desc().type_name,
            input=GetOrderRequest,
            output=GetOrderResponse,
            idempotency_level=IdempotencyLevel.NO_SIDE_EFFECTS,
            stream_type=StreamType.UNARY,
        )
        ctx = RequestContext(method=info, http_method="POST", request_headers=Headers())
        asyncio.run(authorize.on_start(ctx))

    begin("ListOrders")
    with pytest.raises(ConnectError, match="is not in the table of permissions") as caught:
        begin("GetOrder")
    assert caught.value.code is Code.PERMISSION_DENIED
