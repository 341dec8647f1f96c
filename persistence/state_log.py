"""Logs changes of a state: a fault once when it begins, and once when it has ended."""

import logging


class StateLog:
    """Whether something that is tried again and again works at present."""

    def __init__(self, log: logging.Logger, failure: str) -> None:
        """Log to ``log``; ``failure`` says what does not work, as "cannot read the orders"."""
        self._log = log
        self._failure = failure
        self._reason: str | None = None

    def failed(self, error: Exception) -> None:
        """Log a warning, unless the last attempt failed for the same reason."""
        reason = str(error) or type(error).__name__
        if reason != self._reason:
            self._log.warning("%s: %s", self._failure, reason)
        self._reason = reason

    def succeeded(self) -> None:
        """Log that the failure is over, if the last attempt failed."""
        if self._reason is not None:
            self._log.info("no longer: %s", self._failure)
        self._reason = None
