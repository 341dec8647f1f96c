"""Frames of HTTP/2 that ask for nothing, and how many of them are no flood.

PING, SETTINGS and WINDOW_UPDATE are counted, and DATA, which may come a byte each. Frames that
zttp drops without a word (PRIORITY, empty DATA, unknown ones) cost 0.02 us each, and are not. zttp
itself ends a connection with a header list above 64 KiB, or in more than 16 CONTINUATION frames.
"""

from collections.abc import Callable
from typing import Final

# At once, for each second, for each call, and for each 4 KiB that are sent, of which a client may
# tell twice that it has read them.
_AT_ONCE: Final = 2_000
_A_SECOND: Final = 100
_A_CALL: Final = 10
_SENT: Final = 2
_BYTES: Final = 4096


class FrameAllowance:
    """What one client may spend on frames that ask for nothing, and on the pieces of its requests.

    A client that keeps its connection alive, or tells what it has read, comes nowhere near.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` returns seconds."""
        self._left: float = _AT_ONCE
        self._clock = clock
        self._earned_until = clock()

    def earn_for_call(self) -> None:
        """Grant what comes with a call."""
        self._left += _A_CALL

    def earn_for_answer(self, size: int) -> None:
        """Grant what comes back for ``size`` bytes that are sent."""
        self._left += _SENT * (1 + size // _BYTES)

    def spend(self) -> bool:
        """Take one frame from it. Return whether there was one."""
        self._left -= 1
        if self._left < 0:
            now = self._clock()
            self._left += min((now - self._earned_until) * _A_SECOND, _AT_ONCE)
            self._earned_until = now
        return self._left >= 0
