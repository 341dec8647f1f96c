"""The load that neither h2load nor wrk can make: a process of its own that calls a server.

    python -m benchmarks.load

It makes the calls over HTTP/2 with an idempotency key each, which h2load cannot, and the first call
to each server, because it checks that the response is an order.

It reads jobs from its standard input, one JSON object a line, and answers each with a line: the
``Timing``, or the error that ended the job. Every job opens its own connections. It is a separate
process, so that its CPU time is not counted as that of a contestant.
"""

import asyncio
import json
import random
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from itertools import islice

import grpc
import pyqwest
import uvloop

from benchmarks.jobs import Job, Timing
from benchmarks.wire import PATH, PROTOCOLS, framed
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest, UpdateOrderPaymentResponse

_CALL_SECONDS = 20
_CHANNELS = 4
_PREFIX = 5  # bytes


Call = Callable[[UpdateOrderPaymentRequest], Awaitable[UpdateOrderPaymentResponse]]


@asynccontextmanager
async def _grpc(job: Job) -> AsyncIterator[list[Call]]:
    # With a subchannel pool each: otherwise all channels share one connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    target = job.base_url.removeprefix("http://")
    number = min(_CHANNELS, job.connections)
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
        PATH,
        request_serializer=UpdateOrderPaymentRequest.to_binary,
        response_deserializer=UpdateOrderPaymentResponse.from_binary,
    )

    async def call(request: UpdateOrderPaymentRequest) -> UpdateOrderPaymentResponse:
        response: UpdateOrderPaymentResponse = await method(request, timeout=_CALL_SECONDS)
        return response

    return call


@asynccontextmanager
async def _http(job: Job) -> AsyncIterator[list[Call]]:
    protocol = PROTOCOLS[job.protocol]
    version = pyqwest.HTTPVersion.HTTP2 if protocol.http2 else pyqwest.HTTPVersion.HTTP1
    async with pyqwest.HTTPTransport(
        http_version=version, timeout=_CALL_SECONDS, enable_otel=False
    ) as transport:
        client = pyqwest.Client(transport)

        async def call(request: UpdateOrderPaymentRequest) -> UpdateOrderPaymentResponse:
            body = framed(request.to_binary()) if protocol.framed else request.to_json().encode()
            response = await client.post(job.base_url + PATH, dict(protocol.headers), body)
            if response.status != 200:
                raise RuntimeError(f"HTTP {response.status}: {response.text()}")
            if protocol.framed:
                return _unframed(response.content)
            return UpdateOrderPaymentResponse.from_json(response.content)

        yield [call]


def _unframed(content: bytes) -> UpdateOrderPaymentResponse:
    """Return the message of a gRPC-Web response. Raises RuntimeError when it has none."""
    if not content or content[0]:
        raise RuntimeError(f"no message, but {content!r}")
    end = _PREFIX + int.from_bytes(content[1:_PREFIX], "big")
    return UpdateOrderPaymentResponse.from_binary(content[_PREFIX:end])


def _caller(job: Job) -> AbstractAsyncContextManager[list[Call]]:
    """Connect to the server of ``job``; yield the calls that its callers share."""
    return _grpc(job) if job.protocol == "grpc" else _http(job)


async def run(job: Job) -> Timing:
    """Do ``job``. Raises the first error, in an ExceptionGroup."""
    requests = iter(list(islice(_requests(job), job.calls)))
    seconds = []

    async def caller(call: Call) -> None:
        for request in requests:
            start = time.perf_counter()
            response = await call(request)
            seconds.append(time.perf_counter() - start)
            if not response.order or response.order.id != request.order_id:
                raise RuntimeError(f"the answer for order {request.order_id} is {response}")

    async with _caller(job) as calls:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(job.connections):
                group.create_task(caller(calls[number % len(calls)]))
        total = time.perf_counter() - start
    seconds.sort()
    p50, p99 = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
    return Timing(job.calls, job.calls / total, p50, p99)


def _requests(job: Job) -> Iterator[UpdateOrderPaymentRequest]:
    rng = random.Random()
    while True:
        # No order twice in a row, so that no call waits for the row lock of another.
        for order_id in rng.sample(range(1, job.orders + 1), min(job.calls, job.orders)):
            yield UpdateOrderPaymentRequest(
                order_id=order_id,
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
