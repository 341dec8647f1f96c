"""The number of attempts of a fault test, and the report of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass

FULL = os.environ.get("LISTINGS_FAULTS") == "full"
"""Whether to run all attempts. Otherwise, as many as fit into a minute."""


@dataclass(frozen=True)
class Trial:
    """A test's row of the table at the end of a run."""

    record_property: Callable[[str, object], None]

    def times(self, short: int, full: int) -> int:
        """Return the number of attempts: ``short``, or ``full`` in a full run."""
        return full if FULL else short

    def report(self, tried: int, lost: int, note: str) -> None:
        """Report the attempts, the losses, and a note."""
        self.record_property("tried", tried)
        self.record_property("lost", lost)
        self.record_property("note", note)
