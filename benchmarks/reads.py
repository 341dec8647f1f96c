"""The cost of reads over gRPC: on the fast path, and with it turned off.

The load is a closed loop of one h2load, which sends the same request over and over. The two ways
alternate within each round: their ratio is taken there.
"""

import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

from protobuf import Message, Oneof

from benchmarks import fleet
from benchmarks.contestants import LISTINGS, contestants
from benchmarks.database import OrderDatabase
from benchmarks.errors import BenchmarkError
from benchmarks.measuring import Bench
from benchmarks.processes import Server, cpu_seconds, server
from benchmarks.series import Plan
from benchmarks.wire import LANES, PATH, PROTOCOLS, framed
from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    ListOrderPaymentsRequest,
    ListOrdersRequest,
)

Costs = dict[str, dict[str, list[float]]]
"""By read and way: the service's CPU a call, in seconds, by round."""

FAST: Final = "fast path"
OFF: Final = "off"
GET: Final = "GetOrder"

_WAYS: Final[Mapping[str, Mapping[str, str]]] = {FAST: {}, OFF: {"LISTINGS_GRPC_FAST_PATH": "off"}}
_WARM_UP_CALLS: Final = 10 * LANES
_SECONDS: Final = 120.0

# An order with a payment, so that there is something to find and to list.
_PAID: Final = """
    SELECT id, payment_transaction_id FROM orders
    WHERE payment_transaction_id IS NOT NULL ORDER BY id LIMIT 1
"""


def measure(bench: Bench, plan: Plan, database: OrderDatabase) -> Costs:
    """Return the figures. Raises BenchmarkError when a call fails."""
    database.tidy(history=True)
    requests = _requests(database)
    (listings,) = contestants([LISTINGS], bench.scratch, bench.say)
    costs: Costs = {}
    for number in range(1, plan.rounds + 1):
        bench.say(f"Reads over gRPC, round {number} of {plan.rounds}")
        with ExitStack() as stack:
            running = {}
            for way, settings in _WAYS.items():
                contestant = replace(listings, settings=settings)
                log = bench.scratch / f"{way}.log"
                running[way] = stack.enter_context(server(contestant, database.url, log))
            for name, request in requests.items():
                # Each way is the first in every other round.
                for way in sorted(_WAYS, reverse=number % 2 == 1):
                    cost = _cost(running[way], request, plan.seconds)
                    costs.setdefault(name, {}).setdefault(way, []).append(cost)
    return costs


def _requests(database: OrderDatabase) -> dict[str, Message[Any]]:
    paid = database.connection.execute(_PAID).fetchone()
    if paid is None:
        raise BenchmarkError("there is no order with a payment")
    order_id, transaction = paid
    reference: Any = Oneof("payment_transaction_id", transaction)
    return {
        GET: GetOrderRequest(order_id=order_id),
        "FindOrderByPayment": FindOrderByPaymentRequest(reference=reference),
        "ListOrderPayments": ListOrderPaymentsRequest(order_id=order_id),
        "ListOrderPaymentEvents": ListOrderPaymentEventsRequest(order_id=order_id),
        "ListOrders, 10": ListOrdersRequest(page_size=10),
        "ListOrders, 50": ListOrdersRequest(page_size=50),
    }


def _cost(running: Server, request: Message[Any], seconds: float) -> float:
    """Return the CPU of a call that is made for about ``seconds``."""
    began = time.perf_counter()
    _call(running, request, _WARM_UP_CALLS)
    rate = _WARM_UP_CALLS / (time.perf_counter() - began)
    calls = max(_WARM_UP_CALLS, min(round(rate * seconds), fleet.MOST_CALLS * LANES))
    before = cpu_seconds(running.process)
    _call(running, request, calls)
    return (cpu_seconds(running.process) - before) / calls


def _call(running: Server, request: Message[Any], calls: int) -> None:
    protocol = PROTOCOLS["grpc"]
    method = type(request).__name__.removesuffix("Request")
    headers = [f"--header={name}: {value}" for name, value in protocol.headers.items()]
    url = f"{running.base_url}{PATH.rpartition('/')[0]}/{method}"
    with NamedTemporaryFile(prefix="listings-read-") as body, NamedTemporaryFile() as output:
        body.write(framed(request.to_binary()))
        body.flush()
        command = ["h2load", url, f"--requests={calls}", f"--clients={LANES}", *headers]
        try:
            subprocess.run(
                [*command, f"--data={body.name}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=_SECONDS,
                check=True,
            )
            fleet.check(Path(output.name), calls, protocol)
        except (BenchmarkError, subprocess.SubprocessError) as error:
            raise BenchmarkError(f"{method}: {error}") from error
