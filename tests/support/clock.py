"""Time that passes when a test says so."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Stands for ``time.time`` or ``time.monotonic``: add seconds to ``now``."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now
