"""Load on the service: callers, their updates, and a log of the answer to each attempt.

``checker`` compares the log with the ledger.
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import httpx
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from protobuf import Message
from pyqwest import Client, HTTPTransport, HTTPVersion

from server.gen.google.rpc.error_details_pb import ErrorInfo, RetryInfo
from server.gen.listings.v1.orders_connect import OrderServiceClient
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from server.rpc.retries import RETRIES
from tests.support.callers import (
    Failure,
    connect_failure,
    grpc_failure,
    json_failure,
    method_name,
    path,
    response_type,
)
from tests.support.orders import Orders
from tests.support.waiting import eventually_async

OK: Final = "ok"
CANCELLED: Final = "canceled"
"""The code of a call that the caller cancelled, as Connect spells it."""

UNKNOWN: Final = frozenset({CANCELLED, "unavailable", "deadline_exceeded"})
"""The codes after which it is unknown whether the update was made."""

Call = Callable[[Message[Any], float | None], Coroutine[Any, Any, Any]]
"""Sends a request with a deadline in seconds and returns the response, or raises Failure."""

Caller = Callable[[str], AbstractAsyncContextManager[Call]]
"""Connects to a base URL."""


@asynccontextmanager
async def grpcio(base_url: str) -> AsyncIterator[Call]:
    """gRPC by grpcio, with its default settings."""
    async with grpc.aio.insecure_channel(base_url.removeprefix("http://")) as channel:

        async def call(request: Message[Any], deadline: float | None = None) -> Any:
            method = channel.unary_unary(
                path(request),
                request_serializer=type(request).to_binary,
                response_deserializer=response_type(request).from_binary,
            )
            try:
                return await method(request, timeout=deadline)
            except grpc.aio.AioRpcError as error:
                raise grpc_failure(error) from error

        yield call


@asynccontextmanager
async def connectrpc(base_url: str) -> AsyncIterator[Call]:
    """Connect with binary messages over HTTP/2."""
    async with (
        HTTPTransport(http_version=HTTPVersion.HTTP2) as transport,
        OrderServiceClient(
            base_url, protocol=ProtocolType.CONNECT, http_client=Client(transport)
        ) as client,
    ):

        async def call(request: Message[Any], deadline: float | None = None) -> Any:
            milliseconds = None if deadline is None else round(deadline * 1000)
            try:
                return await getattr(client, method_name(request))(request, timeout_ms=milliseconds)
            except ConnectError as error:
                raise connect_failure(error) from error

        yield call


@asynccontextmanager
async def json(base_url: str) -> AsyncIterator[Call]:
    """JSON over HTTP/1.1."""
    async with httpx.AsyncClient(base_url=base_url, timeout=60, trust_env=False) as client:

        async def call(request: Message[Any], deadline: float | None = None) -> Any:
            headers = {"content-type": "application/json"}
            if deadline is not None:
                headers["connect-timeout-ms"] = str(round(deadline * 1000))
            response = await client.post(path(request), content=request.to_json(), headers=headers)
            if response.status_code != 200:
                raise json_failure(response)
            return response_type(request).from_json(response.content)

        yield call


@asynccontextmanager
async def watching(base_url: str) -> AsyncIterator[Call]:
    """gRPC, to watch payments: a call returns the first message of the stream, and cancels it."""
    async with grpc.aio.insecure_channel(base_url.removeprefix("http://")) as channel:

        async def call(request: Message[Any], deadline: float | None = None) -> Any:
            method = channel.unary_stream(
                path(request),
                request_serializer=type(request).to_binary,
                response_deserializer=response_type(request).from_binary,
            )
            stream = method(request, timeout=deadline)
            try:
                return await anext(aiter(stream))
            except grpc.aio.AioRpcError as error:
                raise grpc_failure(error) from error
            finally:
                stream.cancel()

        yield call


CALLERS: dict[str, Caller] = {"grpcio": grpcio, "connectrpc": connectrpc, "json": json}


@dataclass(frozen=True)
class Attempt:
    """One call: caller, request, answer, and times by ``time.monotonic``."""

    caller: str
    request: Message[Any]
    began: float
    ended: float
    code: str = OK
    deadline: float | None = None
    replayed: bool = False
    message: str = ""
    details: tuple[Message[Any], ...] = ()

    @property
    def seconds(self) -> float:
        """The duration of the call."""
        return self.ended - self.began

    @property
    def is_fine(self) -> bool:
        """Whether the answer is one that ``Updates`` expects from a healthy service."""
        return self.code in {OK, "not_found", "failed_precondition"}

    @property
    def may_be_retried(self) -> bool:
        """Whether the answer has a retry delay."""
        return any(isinstance(each, RetryInfo) for each in self.details)

    @property
    def follows_table(self) -> bool:
        """Whether the answer has a retry delay if the table of retries gives it one."""
        retry = RETRIES[self.reason or ""]
        is_update = isinstance(self.request, UpdateOrderPaymentRequest)
        has_key = bool(getattr(self.request, "payment_idempotency_key", None))
        is_open = retry.needs_key and is_update and not has_key
        return self.may_be_retried == (retry.delay is not None and not is_open)

    @property
    def reason(self) -> str | None:
        """The reason in the answer's ErrorInfo, if it has one."""
        reasons = (each.reason for each in self.details if isinstance(each, ErrorInfo))
        return next(reasons, None)


async def attempt(
    caller: str,
    call: Call,
    request: Message[Any],
    deadline: float | None = None,
    began: float | None = None,
) -> Attempt:
    """Send a request once. Its duration is counted from ``began``, when it was due, if given."""
    began = began or time.monotonic()
    try:
        response = await call(request, deadline)
    except Failure as failure:
        return Attempt(
            caller,
            request,
            began,
            time.monotonic(),
            failure.code,
            deadline,
            message=failure.message,
            details=failure.details,
        )
    replayed = getattr(response, "replayed", False)
    return Attempt(caller, request, began, time.monotonic(), OK, deadline, replayed)


@dataclass
class Updates:
    """An endless sequence of updates to some orders; no two have the same values.

    Each is identified by its ``payment_transaction_id``, and belongs to a new attempt to pay the
    order, whose status any open order takes. Every second one has an idempotency key. Unless
    ``all_good``, one in ten must be refused: half of these for an order that does not exist, the
    others for a status transition that is not allowed.
    """

    url: str
    all_good: bool = False
    order_ids: list[int] = field(default_factory=list)
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        orders = Orders(self.url)
        self.order_ids = self.order_ids or [orders.add() for _ in range(8)]
        self._settled = orders.add(payment_status="refunded")

    def next(self, *, keyed: bool | None = None) -> UpdateOrderPaymentRequest:
        """Return the next update, with an idempotency key if ``keyed``."""
        number = next(self.numbers)
        order_id = self.order_ids[number % len(self.order_ids)]
        if number % 20 == 9 and not self.all_good:
            order_id = 2**60
        elif number % 20 == 19 and not self.all_good:
            order_id = self._settled
        request = UpdateOrderPaymentRequest(
            order_id=order_id,
            payment_provider="stripe",
            payment_session_id=f"cs_{number}",
            payment_status=("pending", "requires_action", "created")[number % 3],
            payment_transaction_id=f"txn_{number}",
        )
        if keyed if keyed is not None else number % 2 == 0:
            request.payment_idempotency_key = f"evt_{number}"
        return request


Log = list[Attempt]

_DEADLINE = 10  # seconds


class Load:
    """Callers that call in a loop, and the log of all their attempts."""

    def __init__(self) -> None:
        self.log: Log = []
        self.callers: set[str] = set()

    async def answered(self, code: str, since: float) -> float:
        """Wait until each caller has received that code for a call begun after ``since``.

        Returns the time when the last of them received it first.
        """
        ended: dict[str, float] = {}

        def all_have() -> bool:
            for each in self.log:
                if each.began >= since and each.code == code:
                    ended.setdefault(each.caller, each.ended)
            return ended.keys() == self.callers

        await eventually_async(all_have)
        return max(ended.values())

    @property
    def failed(self) -> Log:
        """The attempts with an unexpected answer."""
        return [each for each in self.log if not each.is_fine]


@asynccontextmanager
async def callers(
    base_url: str,
    updates: Updates,
    each: int = 2,
    pause: float = 0.02,
    kinds: Sequence[str] = tuple(CALLERS),
) -> AsyncIterator[Load]:
    """Run ``each`` callers of each of ``kinds`` within the context.

    They send one update after the other, and repeat one with a key until its outcome is known.
    """
    load = Load()
    stopping = asyncio.Event()

    async def go_on(name: str, call: Call) -> None:
        while not stopping.is_set():
            request, again = updates.next(), True
            while again:
                made = await attempt(name, call, request, _DEADLINE)
                load.log.append(made)
                again = made.code in UNKNOWN and request.has_field("payment_idempotency_key")
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for kind in kinds:
            for number in range(each):
                name = f"{kind} {number + 1}"
                load.callers.add(name)
                call = await stack.enter_async_context(CALLERS[kind](base_url))
                group.create_task(go_on(name, call))
        try:
            yield load
        finally:
            stopping.set()


async def open_loop(
    rate: float, send: Callable[[float], Coroutine[Any, Any, object]], over: Callable[[], bool]
) -> None:
    """Call ``send`` at a fixed rate, whether or not earlier calls have ended, until ``over``.

    ``send`` gets the time when it was due: latencies counted from then include the queueing.
    """
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            due = began + number / rate
            await asyncio.sleep(due - time.monotonic())
            if over():
                break
            group.create_task(send(due))
