"""The load: a process of its own that calls a server and keeps the time.

    python -m benchmarks.load

Reads jobs from its input, one JSON object a line, and answers each with a line: the ``Timing``, or
the error that ended the job. Every job opens its own connections. It runs apart from the rest so
that its work is not charged to anyone.
"""

import asyncio
import json
import random
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass

import grpc
import pyqwest
import uvloop

from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest, UpdateOrderPaymentResponse

_PATH = "/listings.v1.OrderService/UpdateOrderPayment"
_CALL_SECONDS = 20
_CHANNELS = 4


@dataclass(frozen=True)
class Job:
    """``requests`` updates of random orders out of ``orders``; ``seed`` says which.

    With ``keyed``, each has an idempotency key that was never used before.

    A closed loop: each of ``concurrency`` callers sends its next one when it has its answer.
    """

    protocol: str
    keyed: bool
    base_url: str
    requests: int
    concurrency: int
    orders: int
    seed: int


@dataclass(frozen=True)
class Timing:
    """How long a job took, and the median and the 99th percentile of its calls, in seconds."""

    seconds: float
    p50: float
    p99: float


Call = Callable[[UpdateOrderPaymentRequest], Awaitable[UpdateOrderPaymentResponse]]
Caller = Callable[[Job], AbstractAsyncContextManager[list[Call]]]
"""Connects to the server of a job. What it yields is dealt out to the job's callers."""


@asynccontextmanager
async def _grpc(job: Job) -> AsyncIterator[list[Call]]:
    # With a pool each, or grpcio would put all channels onto one connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    target = job.base_url.removeprefix("http://")
    number = min(_CHANNELS, job.concurrency)
    channels = [grpc.aio.insecure_channel(target, options) for _ in range(number)]
    try:
        for channel in channels:
            await asyncio.wait_for(channel.channel_ready(), _CALL_SECONDS)
        yield [_grpc_call(channel) for channel in channels]
    finally:
        for channel in channels:
            await channel.close()


def _grpc_call(channel: "grpc.aio.Channel") -> Call:
    method = channel.unary_unary(
        _PATH,
        request_serializer=UpdateOrderPaymentRequest.to_binary,
        response_deserializer=UpdateOrderPaymentResponse.from_binary,
    )

    async def call(request: UpdateOrderPaymentRequest) -> UpdateOrderPaymentResponse:
        response: UpdateOrderPaymentResponse = await method(request, timeout=_CALL_SECONDS)
        return response

    return call


@asynccontextmanager
async def _json(job: Job) -> AsyncIterator[list[Call]]:
    url = job.base_url + _PATH
    headers = {"content-type": "application/json"}
    async with pyqwest.HTTPTransport(timeout=_CALL_SECONDS, enable_otel=False) as transport:
        client = pyqwest.Client(transport)

        async def call(request: UpdateOrderPaymentRequest) -> UpdateOrderPaymentResponse:
            response = await client.post(url, headers, request.to_json().encode())
            if response.status != 200:
                raise RuntimeError(f"HTTP {response.status}: {response.text()}")
            return UpdateOrderPaymentResponse.from_json(response.content)

        yield [call]


CALLERS: dict[str, Caller] = {"grpc": _grpc, "json": _json}


async def run(job: Job) -> Timing:
    """Do ``job``. Raises the first error, in an ExceptionGroup."""
    requests = iter(list(_requests(job)))
    seconds = []

    async def caller(call: Call) -> None:
        for request in requests:
            start = time.perf_counter()
            response = await call(request)
            seconds.append(time.perf_counter() - start)
            if not response.order or response.order.id != request.order_id:
                raise RuntimeError(f"the answer for order {request.order_id} is {response}")

    async with CALLERS[job.protocol](job) as calls:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(job.concurrency):
                group.create_task(caller(calls[number % len(calls)]))
        total = time.perf_counter() - start
    seconds.sort()
    return Timing(total, seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100])


def _requests(job: Job) -> Iterator[UpdateOrderPaymentRequest]:
    rng = random.Random(job.seed)
    for _ in range(job.requests):
        yield UpdateOrderPaymentRequest(
            order_id=rng.randint(1, job.orders),
            payment_status="paid",
            payment_transaction_id=f"txn_{rng.getrandbits(96):024x}",
            payment_idempotency_key=str(uuid.uuid4()) if job.keyed else None,
        )


async def _answer_jobs() -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        job = Job(**json.loads(line))
        try:
            answer = asdict(await run(job))
        except* Exception as group:
            error = group.exceptions[0]
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_answer_jobs())
