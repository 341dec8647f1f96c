"""The protocols, and the bodies of calls."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from benchmarks.errors import BenchmarkError
from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest

PATH: Final = "/listings.v1.OrderService/UpdateOrderPayment"
LANES: Final = 32
FEWEST_ORDERS: Final = 1_000
_HEADS: Final = 2_048


@dataclass(frozen=True)
class Protocol:
    """``http2`` or HTTP/1.1. With ``framed``, a body has gRPC's prefix."""

    http2: bool
    framed: bool
    headers: Mapping[str, str]


PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "grpc": Protocol(
        http2=True, framed=True, headers={"content-type": "application/grpc", "te": "trailers"}
    ),
    "grpc-web": Protocol(
        http2=False, framed=True, headers={"content-type": "application/grpc-web+proto"}
    ),
    "json": Protocol(http2=False, framed=False, headers={"content-type": "application/json"}),
    "json-h2": Protocol(http2=True, framed=False, headers={"content-type": "application/json"}),
}


def framed(message: bytes) -> bytes:
    """Return ``message`` with gRPC's length prefix, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def bodies(protocol: Protocol, orders: int, lane: int) -> Iterator[bytes]:
    """Yield bodies for random orders of ``lane``, each with a transaction of its own, endlessly.

    No order is in two of the ``LANES``, so two lanes never wait for the same row. All bodies have
    the same length, and a mixture of the bytes of two bodies is also a body of this lane.
    """
    if orders < FEWEST_ORDERS:
        raise BenchmarkError(f"there have to be {FEWEST_ORDERS:,} orders or more")
    first, end = _of_one_length(orders, 128 if protocol.framed else 10)
    step = 32 if protocol.framed else 100  # what the last digits leave untouched
    rng = random.Random()
    ids = [first + step * rng.randrange((end - first) // step) + lane for _ in range(_HEADS)]
    mark = f"txn_{rng.getrandbits(64):016x}"
    heads, marked = (_messages if protocol.framed else _texts)(ids, mark)
    for number in count(rng.getrandbits(31)):
        yield marked % (rng.choice(heads), number & 0xFFFFFFFF)


def _texts(ids: Sequence[int], mark: str) -> tuple[list[bytes], bytes]:
    """Return JSON up to the end of the transaction, and how to write the whole."""
    text = '{"orderId":%d,"paymentStatus":"paid","paymentTransactionId":"%s'
    return [(text % (each, mark)).encode() for each in ids], b'%s%08x"}'


def _messages(ids: Sequence[int], mark: str) -> tuple[list[bytes], bytes]:
    """Return framed messages up to the end of the transaction, and how to write the whole."""
    end = 8
    whole = (
        UpdateOrderPaymentRequest(
            order_id=each, payment_status="paid", payment_transaction_id=mark + "0" * end
        ).to_binary()
        for each in ids
    )
    return [framed(each)[:-end] for each in whole], b"%s%08x"


def _of_one_length(orders: int, base: int) -> tuple[int, int]:
    """Return a range of ids of equal length, in which any mixture of digits is an id."""
    unit = 1
    while unit * base <= orders:
        unit *= base
    end = orders // unit * unit
    return (unit, end) if end > unit else (unit // base, unit)
