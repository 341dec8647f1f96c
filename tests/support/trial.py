"""How hard a test of faults tries, and what it tells of that."""

import os
from collections.abc import Callable
from dataclasses import dataclass

FULL = os.environ.get("LISTINGS_FAULTS") == "full"
"""Whether to try as often as it takes to be sure. Otherwise, as often as fits into a minute."""


@dataclass(frozen=True)
class Trial:
    """One test's share of the table that a full run ends with."""

    record_property: Callable[[str, object], None]

    def times(self, short: int, full: int) -> int:
        """Return how often to try, of a number for short runs and one for full ones."""
        return full if FULL else short

    def report(self, tried: int, lost: int, note: str) -> None:
        """Tell how often it was tried, how much was lost, and what else is worth knowing."""
        self.record_property("tried", tried)
        self.record_property("lost", lost)
        self.record_property("note", note)
