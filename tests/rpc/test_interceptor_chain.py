"""The order in which connectrpc runs the interceptors of each service."""

import ast
import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from persistence.database import Database
from persistence.history import PaymentHistory
from persistence.watch import ChangeFeed
from server.app import create_app
from server.observability.tracing import Telemetry
from server.rpc.health import Readiness
from server.settings import Settings
from tests.support import asgi
from tests.support.raw import envelope

ROOT = Path(__file__).parents[2]

# What the service names before it makes its chain.
NAMED = {"access_log": "AccessLog", "authorization": "AuthorizationInterceptor"}

NOWHERE = "postgresql://nobody@/nothing?host=/nowhere"

STARTS = ["AccessLog.on_start", "UnreadInterceptor.on_start"]
ENDS = ["UnreadInterceptor.on_end", "AccessLog.on_end"]
AUTHORIZED = "AuthorizationInterceptor.on_start"
AUTHORIZATION_ENDS = "AuthorizationInterceptor.on_end"

ORDERS_START = [*STARTS, "RequestIdInterceptor.on_start", AUTHORIZED]
ORDERS_END = [AUTHORIZATION_ENDS, "RequestIdInterceptor.on_end", *ENDS]

UNARY = ["ErrorInterceptor", "RequestHooksInterceptor", "DeadlineInterceptor"]
STREAM = [
    "ErrorInterceptor",
    "TokenExpiryInterceptor",
    "WatchLimitInterceptor",
    "RequestHooksInterceptor",
    "DeadlineInterceptor",
]

HOOKS = ("on_start", "on_end", "intercept_unary", "intercept_server_stream")
BIDI = "intercept_bidi_stream"


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Record the hooks of interceptors that are called in this thread, in order."""
    names: list[str] = []
    frames: list[FrameType] = []  # of coroutines, which are entered again after each await

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        name = frame.f_code.co_name
        if event != "call" or name not in (*HOOKS, BIDI):
            return
        if not any(each is frame for each in frames):
            frames.append(frame)
            names.append(f"{type(frame.f_locals['self']).__name__}.{name}")

    sys.setprofile(profile)
    try:
        yield names
    finally:
        sys.setprofile(None)


def run(path: str, content_type: str, body: bytes, telemetry: Telemetry | None = None) -> list[str]:
    """Call a method of a service without a reachable database."""

    async def call() -> list[str]:
        settings = Settings(statement_timeout=0.2, public=("health", "reflection"))
        database = Database(NOWHERE, max_connections=1, connect_timeout=1, statement_timeout=1)
        ledger = PaymentHistory(database)
        feed = ChangeFeed(ledger, NOWHERE, connect_timeout=1)
        readiness = Readiness(NOWHERE, database)
        readiness.stop()  # ends a stream of Health/Watch
        app = create_app(settings, database, feed, readiness, telemetry=telemetry)
        with recorded() as names:
            await asgi.request(app.asgi, path, content_type=content_type, body=body)
        return names

    return asyncio.run(call())


def hooked(names: list[str], hook: str) -> list[str]:
    return [f"{name}.{hook}" for name in names]


def test_a_unary_method_of_orders() -> None:
    names = run("/listings.v1.OrderService/GetOrder", "application/json", b'{"orderId": 1}')
    assert names == [*ORDERS_START, *hooked(UNARY, "intercept_unary"), *ORDERS_END]


def test_a_stream_of_orders() -> None:
    path = "/listings.v1.OrderService/WatchOrderPayments"
    names = run(path, "application/connect+json", envelope(b'{"storefrontId": 1}'))
    assert names == [*ORDERS_START, *hooked(STREAM, "intercept_server_stream"), *ORDERS_END]


def test_grpc_runs_the_same_chain() -> None:
    names = run("/listings.v1.OrderService/GetOrder", "application/grpc", envelope(b"\x08\x01"))
    assert names == [*ORDERS_START, *hooked(UNARY, "intercept_unary"), *ORDERS_END]


def test_with_telemetry() -> None:
    telemetry = Telemetry(traces=False, metrics=False)
    path = "/listings.v1.OrderService/GetOrder"
    names = run(path, "application/json", b'{"orderId": 1}', telemetry)
    assert names == [
        *ORDERS_START,
        "OpenTelemetryInterceptor.on_start",
        *hooked(["RequestHooksInterceptor", *UNARY], "intercept_unary"),
        "OpenTelemetryInterceptor.on_end",
        *ORDERS_END,
    ]


@pytest.mark.parametrize(
    ("method", "content_type", "body", "between"),
    [
        ("Check", "application/json", b"{}", ["ErrorInterceptor.intercept_unary"]),
        (
            "Watch",
            "application/connect+json",
            envelope(b"{}"),
            hooked(
                ["ErrorInterceptor", "TokenExpiryInterceptor", "WatchLimitInterceptor"],
                "intercept_server_stream",
            ),
        ),
    ],
)
def test_health(method: str, content_type: str, body: bytes, between: list[str]) -> None:
    names = run(f"/grpc.health.v1.Health/{method}", content_type, body)
    assert names == [*STARTS, AUTHORIZED, *between, AUTHORIZATION_ENDS, *ENDS]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    names = run(path, "application/connect+proto", b"")
    assert names[:3] == [*STARTS, AUTHORIZED]
    assert names[-3:] == [AUTHORIZATION_ENDS, *ENDS]
    # TokenExpiryInterceptor has one function for both kinds of streams.
    assert names[3:-3] == [
        "TokenExpiryInterceptor.intercept_server_stream",
        "ShutdownInterceptor.intercept_bidi_stream",
    ]


def test_a_request_that_cannot_be_decoded() -> None:
    """Only metadata interceptors run; they see headers and no message."""
    names = run("/listings.v1.OrderService/GetOrder", "application/json", b"{")
    assert names == [*ORDERS_START, *ORDERS_END]


def written(module: str, variable: str) -> list[str]:
    """Return the names of the interceptors in a list of that module's source, in its order."""
    tree = ast.parse((ROOT / module).read_bytes())
    (assigned,) = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == variable
    )
    assert isinstance(assigned, ast.List)
    entries = [each.elts[0] if isinstance(each, ast.Tuple) else each for each in assigned.elts]
    names = [each.func if isinstance(each, ast.Call) else each for each in entries]
    return [NAMED.get(name.id, name.id) for name in names if isinstance(name, ast.Name)]


def test_the_service_of_the_conformance_suite_has_the_same_chain() -> None:
    """Its module needs code that ``./justw conformance`` generates, so that its source is read."""
    chain = written("server/app.py", "chain")
    assert len(chain) > 5
    assert written("tests/conformance/app.py", "interceptors") == chain
