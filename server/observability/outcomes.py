"""Outcomes of payment updates: a metric, and the field ``outcome`` of the RPC's log entry."""

from prometheus_client import Counter
from structlog.contextvars import bind_contextvars

from persistence.errors import IdempotencyKeyReused, PaymentStatusRefused
from persistence.models import Update


class UpdateOutcomes:
    """Counts updates by their outcome.

    - applied: the update was written;
    - replayed: an earlier request with the same idempotency key had written it;
    - key_reused: refused, because the idempotency key belongs to a different request;
    - status_refused: refused, because a late event must not replace the payment's status.
    """

    def __init__(self, updates: Counter) -> None:
        self._applied = updates.labels("applied")
        self._replayed = updates.labels("replayed")
        self._key_reused = updates.labels("key_reused")
        self._status_refused = updates.labels("status_refused")

    def record_update(self, update: Update) -> None:
        """Count an update that was written, by this request or an earlier one."""
        if update.replayed:
            self._replayed.inc()
            bind_contextvars(outcome="replayed")
        else:
            self._applied.inc()

    def record_refusal(self, error: IdempotencyKeyReused | PaymentStatusRefused) -> None:
        """Count an update that was refused."""
        if isinstance(error, IdempotencyKeyReused):
            self._key_reused.inc()
            bind_contextvars(outcome="key_reused")
        else:
            self._status_refused.inc()
            bind_contextvars(outcome="status_refused")
