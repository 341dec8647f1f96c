"""A service under test by many requests, and the checks after each batch of them."""

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager, suppress
from typing import Any, Final

from hypothesis import HealthCheck, Phase, settings
from protobuf import Message
from protobuf.wkt import Duration

from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    ListOrdersRequest,
    ListStuckPaymentsRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import exchange
from tests.support.answers import Client
from tests.support.callers import READERS, Call
from tests.support.hostile_requests import Known
from tests.support.http2 import connected
from tests.support.orders import Orders
from tests.support.requests import Header, Request
from tests.support.service import Service
from tests.support.waiting import eventually_async
from tests.support.watchers import WATCHERS, Watch

FULL: Final = os.environ.get("LISTINGS_FUZZ") == "full"
"""Whether to send more than 100,000 requests. Otherwise, as many as fit into some seconds."""

BATCH: Final = 40
"""The number of requests sent concurrently."""

_FAULTS: Final = {"unknown", "data_loss", "unavailable", "http 500"}
"""Codes of server faults: no request may cause them.

INTERNAL may be the caller's fault, for a message that is marked as compressed. One that is the
server's is logged at the level error.
"""

_LOGGED: Final = (b'"level": "error"', b'"level": "critical"', b"Traceback")

_BYSTANDERS: Final = 123_456_789_012_345  # an order id that mutated requests are unlikely to hit

_UNDER_WAY: Final = ("listings_rpcs_in_flight", "listings_watchers", "listings_pool_in_use")
"""Gauges that must be 0 when no call is in flight."""

_BEGUN: Final = 0.1  # seconds for the first byte of a response; there may be none
_SETTLED: Final = 0.02  # seconds without a byte after which no more of it is expected
_MOST_WAITING: Final = 100  # unanswered connections that are kept open, to check that they end
_LONGEST_WAIT: Final = 25.0  # seconds; a head and a body may take ten each


def batches(*, short: int, full: int) -> settings:
    """Return the settings for a test of batches.

    A failing example is not shrunk: the requests have changed the state of the service.
    """
    return settings(
        max_examples=full if FULL else short,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


Tally = Counter[tuple[str, str, str, str]]
"""The number of requests, by kind, protocol, method and outcome."""


class Target:
    """A service, clients that check it with valid calls, and a record of the requests."""

    def __init__(
        self, service: Service, tally: Tally, known: Known, bystanders: Sequence[Call]
    ) -> None:
        self.known = known
        self._service = service
        self._tally = tally
        self._runner = asyncio.Runner()
        self._waiting: list[tuple[bytes, asyncio.StreamReader, AsyncExitStack]] = []
        self._waiting_since = 0.0
        self._before: list[str] = []
        self._log = service.log.open("rb")
        self._bystanders = itertools.cycle(bystanders)
        self._question = GetOrderRequest(order_id=Orders(service.database_url).add(id=_BYSTANDERS))
        self._right = bystanders[0](self._question)

    def send(self, kind: str, requests: Sequence[Request]) -> None:
        """Send requests concurrently, check that each is answered, and check the service."""
        codes = self._run(exchange.send(self._service, requests))
        for request, code in zip(requests, codes, strict=True):
            self._tally[kind, request.protocol, request.method, code] += 1
        bad = _FAULTS | {exchange.WAITING, exchange.INCOMPLETE}
        wrong = [
            f"{code}: {request!r}"
            for request, code in zip(requests, codes, strict=True)
            if code in bad
        ]
        self._check(wrong, requests)

    def throw(self, kind: str, protocol: str, thrown: Sequence[tuple[str, bytes]]) -> None:
        """Send bytes, each over a connection of its own, and check the service.

        Each item is the method that the bytes mostly are of, and the bytes.
        """
        found = self._run(self._throw([data for _, data in thrown]))
        wrong = []
        for (method, data), codes in zip(thrown, found, strict=True):
            self._tally[kind, protocol, method, codes[0]] += 1
            wrong += [f"{code}: {data!r}" for code in codes if code in _FAULTS]
        self._check(wrong, [data for _, data in thrown])

    def end(self) -> None:
        """Check that kept connections end, and that no call is in flight."""
        wrong = self._run(self._left_waiting())
        self._run(eventually_async(lambda: not any(map(self._service.metric, _UNDER_WAY))))
        self._check(wrong, [])

    def close(self) -> None:
        """Close the event loop and the log."""
        self._runner.close()
        self._log.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(coroutine)

    def _check(self, wrong: list[str], sent: Sequence[object]) -> None:
        process = self._service.process
        if process.poll() is not None:
            wrong.append(f"the process has ended with {process.returncode}")
        else:
            answer = next(self._bystanders)(self._question)
            if answer != self._right:
                wrong.append(f"a bystander was answered {answer}")
        logged = self._log.read()
        wrong += [
            f"logged: {line.decode(errors='replace')}"
            for line in logged.splitlines()
            if any(sign in line for sign in _LOGGED)
        ]
        # The log may be about the previous batch: its errors may be logged after its check.
        assert not wrong, "\n".join([*wrong, "sent, and before:", *map(repr, sent), *self._before])
        self._before = list(map(repr, sent))

    async def _throw(self, thrown: Sequence[bytes]) -> list[list[str]]:
        return await asyncio.gather(*map(self._throw_one, thrown))

    async def _throw_one(self, data: bytes) -> list[str]:
        async with AsyncExitStack() as stack:
            reader, writer = await stack.enter_async_context(connected(self._service))
            with suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
            received, ended = await exchange.receive(reader, _BEGUN, _SETTLED)
            codes = exchange.codes(received, Client(reader, writer))
            if data and not codes and not ended and len(self._waiting) < _MOST_WAITING:
                self._waiting.append((data, reader, stack.pop_all()))
                self._waiting_since = self._runner.get_loop().time()
        return codes or [exchange.ENDED if ended else exchange.WAITING]

    async def _left_waiting(self) -> list[str]:
        """Return an error for each connection that stays open longer than the timeouts allow."""
        wrong = []
        for data, reader, connection in self._waiting:
            async with connection:
                try:
                    async with asyncio.timeout_at(self._waiting_since + _LONGEST_WAIT):
                        await reader.read(1)
                except TimeoutError:
                    wrong.append(f"kept waiting: {data!r}")
                except ConnectionError:
                    pass
        return wrong


@contextmanager
def targeted(
    service: Service, tally: Tally, credentials: Sequence[tuple[Header, ...]]
) -> Iterator[Target]:
    """Yield a service as a target; at the end, check that no connection is left unanswered."""
    with ExitStack() as stack:
        headers = {name.decode(): value.decode() for name, value in credentials[0]}
        bystanders = [
            stack.enter_context(caller(service.base_url, **headers)) for caller in READERS.values()
        ]
        watch = stack.enter_context(WATCHERS["grpcio"](service.base_url, **headers))
        order_ids, tokens = _asked_for(service, bystanders[0], watch)
        known = Known(order_ids, tokens, credentials)
        target = stack.enter_context(closing(Target(service, tally, known, bystanders)))
        yield target
        target.end()


# Existing ids and tokens


def _asked_for(service: Service, call: Call, watch: Watch) -> tuple[list[int], list[str]]:
    """Make some orders and events, and return their ids and some page tokens and event ids."""
    orders = Orders(service.database_url)
    order_ids = [orders.add() for _ in range(8)]
    for order_id in order_ids[:2]:
        for status in ("processing", "requires_action"):
            call(
                UpdateOrderPaymentRequest(
                    order_id=order_id, payment_provider="stripe", payment_status=status
                )
            )
    lists: list[Message[Any]] = [
        ListOrdersRequest(page_size=1),
        ListStuckPaymentsRequest(page_size=1, older_than=Duration(seconds=0)),
        ListOrderPaymentEventsRequest(page_size=1, order_id=order_ids[0]),
    ]
    tokens = [call(each).next_page_token for each in lists]
    with watch(WatchOrderPaymentsRequest(order_ids=order_ids)) as stream:
        tokens.append(next(stream).event_id)
        call(UpdateOrderPaymentRequest(order_id=order_ids[0], payment_status="processing"))
        tokens.append(next(stream).event_id)
    return [3, 7, *order_ids], tokens
