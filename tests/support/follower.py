"""A client that follows the payments of some orders, and goes on where its stream ends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import (
    OrderPaymentEvent,
    WatchOrderPaymentsRequest,
    WatchOrderPaymentsResponse,
)
from tests.support.callers import Failure, grpc_failure, path
from tests.support.waiting import eventually_async

_PAUSE = 0.1  # seconds before a stream that has ended is begun again


class Follower:
    """What it was sent, over all of its streams."""

    def __init__(self, order_ids: Sequence[int], last_event_id: str = "") -> None:
        self.events: list[OrderPaymentEvent] = []
        self.positions: list[str] = [last_event_id] if last_event_id else []
        self.failures: list[Failure] = []
        self.heartbeats = 0
        self.has_ended = False
        self._order_ids = order_ids

    @property
    def reasons(self) -> set[str]:
        """The reasons for which its streams have ended."""
        details = [detail for failure in self.failures for detail in failure.details]
        return {each.reason for each in details if isinstance(each, ErrorInfo)}

    async def has(self, transaction: str) -> None:
        """Wait for the event with that ``payment_transaction_id``."""
        await eventually_async(
            lambda: any(
                each.after is not None and each.after.payment_transaction_id == transaction
                for each in self.events
            )
        )

    async def run(self, base_url: str) -> None:
        """Follow, until the history that it has followed is no more."""
        async with grpc.aio.insecure_channel(base_url.removeprefix("http://")) as channel:
            while not self.has_ended:
                try:
                    await self._watch(channel)
                except grpc.aio.AioRpcError as error:
                    self.failures.append(grpc_failure(error))
                    self.has_ended = "HISTORY_CHANGED" in self.reasons
                    await asyncio.sleep(_PAUSE)

    async def _watch(self, channel: grpc.aio.Channel) -> None:
        request = WatchOrderPaymentsRequest(
            order_ids=list(self._order_ids),
            last_event_id=self.positions[-1] if self.positions else "",
        )
        method = channel.unary_stream(
            path(request),
            request_serializer=WatchOrderPaymentsRequest.to_binary,
            response_deserializer=WatchOrderPaymentsResponse.from_binary,
        )
        async for message in method(request):
            self.positions.append(message.event_id)
            if message.event is None:
                self.heartbeats += 1
            else:
                self.events.append(message.event)


@asynccontextmanager
async def following(
    base_url: str, order_ids: Sequence[int], last_event_id: str = ""
) -> AsyncIterator[Follower]:
    """Follow within the context, from ``last_event_id`` or from now on."""
    follower = Follower(order_ids, last_event_id)
    task = asyncio.create_task(follower.run(base_url))
    try:
        await eventually_async(lambda: follower.heartbeats or follower.has_ended)
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
