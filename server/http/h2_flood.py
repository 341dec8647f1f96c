"""How many HTTP/2 frames besides requests a client may send.

zttp and uvicorn take PING, SETTINGS and WINDOW_UPDATE frames without a limit, and DATA frames of
one byte each. These are counted here. Frames that zttp drops (PRIORITY, empty DATA, unknown types)
cost 0.02 µs each, and are not counted. zttp itself ends a connection with a header list above
64 KiB, or in more than 16 CONTINUATION frames. ``h2`` counts streams and RST_STREAM frames.
"""

from collections.abc import Callable
from typing import Final

_BURST: Final = 2_000
_PER_SECOND: Final = 100
_PER_REQUEST: Final = 10

# A client may acknowledge what it has read by two WINDOW_UPDATE frames: stream and connection.
_PER_SENT_BLOCK: Final = 2
_SENT_BLOCK: Final = 4096  # bytes


class FrameBudget:
    """A token bucket of one connection: frames besides requests, and DATA frames of requests.

    A client that keeps its connection alive and acknowledges what it reads stays far below it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` returns seconds."""
        self._left: float = _BURST
        self._clock = clock
        self._refilled_at = clock()

    def earn_for_request(self) -> None:
        """Add what a request grants."""
        self._left += _PER_REQUEST

    def earn_for_sent(self, size: int) -> None:
        """Add what ``size`` bytes of a response grant."""
        self._left += _PER_SENT_BLOCK * (1 + size // _SENT_BLOCK)

    def spend(self) -> bool:
        """Take one frame. Returns whether there was one to take."""
        self._left -= 1
        if self._left < 0:
            now = self._clock()
            self._left += min((now - self._refilled_at) * _PER_SECOND, _BURST)
            self._refilled_at = now
        return self._left >= 0
