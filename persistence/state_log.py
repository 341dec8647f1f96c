"""A fault that lasts: told when it begins and when it is over, and not over and over again."""

import logging


class Trouble:
    """What is wrong at present with something that is tried again and again."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        """Tell ``log`` that ``what`` is not possible, as "cannot read the orders"."""
        self._log = log
        self._what = what
        self._reason: str | None = None

    def is_there(self, error: Exception) -> None:
        """Take note that it was tried, and failed."""
        reason = str(error) or type(error).__name__
        if reason != self._reason:
            self._log.warning("%s: %s", self._what, reason)
        self._reason = reason

    def is_over(self) -> None:
        """Take note that it was tried, and worked."""
        if self._reason is not None:
            self._log.info("no longer: %s", self._what)
        self._reason = None
