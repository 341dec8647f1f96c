"""What is asked of a load generator, and what it tells."""

from dataclasses import dataclass

from benchmarks.wire import LANES


@dataclass(frozen=True)
class Job:
    """``calls`` updates of random orders out of ``orders``, each with a transaction of its own.

    With ``keyed``, each also has an idempotency key that was never used before. A closed loop: each
    of the ``connections`` sends its next one when it has its answer. With a ``rate``, they are sent
    by the clock, that many a second.
    """

    protocol: str
    base_url: str
    orders: int
    calls: int
    keyed: bool = False
    connections: int = LANES
    rate: float | None = None


@dataclass(frozen=True)
class Timing:
    """What a load has shown: calls that were answered, how many a second, and seconds a call.

    ``p50`` and ``p99`` are None where the generator does not tell them, and ``ends``, the time of
    each answer since the epoch, is empty.
    """

    calls: int
    rate: float
    p50: float | None = None
    p99: float | None = None
    ends: tuple[float, ...] = ()
