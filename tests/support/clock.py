"""A clock that a test sets."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Replaces ``time.time`` or ``time.monotonic``: add seconds to ``now``."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now
