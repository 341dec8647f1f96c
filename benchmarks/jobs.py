"""The input and the output of a load generator."""

from dataclasses import dataclass

from benchmarks.wire import LANES


@dataclass(frozen=True)
class Job:
    """``calls`` updates of random orders out of ``orders``, each with a transaction of its own.

    With ``keyed``, each also has an idempotency key that was never used before. The load is a
    closed loop: each of ``connections`` sends its next call after the response. With ``rate``, it
    is paced: that many calls are sent a second.
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
    """The result of a load: calls that were answered, calls a second, and seconds a call.

    ``p50`` and ``p99`` are None if the generator does not report them. ``ends`` has the time of
    each response since the epoch; it is empty if the generator does not report it.
    """

    calls: int
    rate: float
    p50: float | None = None
    p99: float | None = None
    ends: tuple[float, ...] = ()
