"""What becomes of updates: all are counted for Prometheus, some are logged."""

import logging

from prometheus_client import CollectorRegistry, Counter

from persistence.errors import IdempotencyKeyReused, PaymentStatusRefused
from persistence.records import Origin, Update

_log = logging.getLogger(__name__)


class UpdateOutcomes:
    """Counts updates as ``listings_payment_updates_total``, by their outcome.

    - applied: it was written;
    - replayed: an earlier request with the same idempotency key had written it;
    - key_reused: refused, because its idempotency key was used for something else;
    - status_refused: refused, because a late event must not replace the payment's status.

    The log names the order and the request, and neither the key nor a payment's identifiers.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        outcomes = Counter(
            "listings_payment_updates",
            "Updates of payments, by what became of them.",
            ["outcome"],
            registry=registry,
        )
        self._applied = outcomes.labels("applied")
        self._replayed = outcomes.labels("replayed")
        self._key_reused = outcomes.labels("key_reused")
        self._status_refused = outcomes.labels("status_refused")

    def done(self, update: Update, origin: Origin) -> None:
        """Take note of an update that was made, now or before."""
        if update.replayed:
            self._replayed.inc()
            _log.info("order %d: replayed (request %s)", update.order.id, origin.request_id)
        else:
            self._applied.inc()

    def refused(self, error: IdempotencyKeyReused | PaymentStatusRefused, origin: Origin) -> None:
        """Take note of an update that was refused."""
        counter = self._status_refused
        if isinstance(error, IdempotencyKeyReused):
            counter = self._key_reused
        counter.inc()
        _log.warning("order %d: refused, %s (request %s)", error.order_id, error, origin.request_id)
