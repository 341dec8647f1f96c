"""Outcomes of payment updates: metrics, and entries of the log."""

import logging
from typing import Final

import structlog
from prometheus_client import Counter
from structlog.contextvars import bind_contextvars

from persistence.decision import Reason
from persistence.errors import EtagMismatch, IdempotencyKeyReused, PaymentEventRefused
from persistence.models import PaymentUpdate
from persistence.payment_updates import Update

_OUTCOMES: Final = {
    Reason.KEY_REUSED: "key_reused",
    Reason.ATTEMPT_NOT_CURRENT: "attempt_not_current",
    Reason.DUPLICATE: "duplicate",
    Reason.LATE: "late",
    Reason.CURRENCY_MISMATCH: "currency_mismatch",
    Reason.STATUS_REFUSED: "status_refused",
    Reason.STATUS_UNKNOWN: "status_unknown",
}

# The others are what providers and pollers send every day.
_FOR_PEOPLE: Final = (
    Reason.KEY_REUSED,
    Reason.DUPLICATE,
    Reason.CURRENCY_MISMATCH,
    Reason.STATUS_UNKNOWN,
)


class UpdateOutcomes:
    """Counts updates by their outcome, and logs refused events.

    - applied: the update was written;
    - replayed: an earlier request with the same idempotency key had written it;
    - etag_mismatch: not written, because the payment is not as the caller has read it;
    - key_reused and the others of ``_OUTCOMES``: refused for that reason, and on record.
    """

    def __init__(self, updates: Counter, refused: Counter) -> None:
        """``updates`` has the label outcome; ``refused`` has reason, and whether it was written.

        An event is written although it is refused where the rules are only tried out.
        """
        self._applied = updates.labels("applied")
        self._replayed = updates.labels("replayed")
        self._etag_mismatch = updates.labels("etag_mismatch")
        self._outcomes = {reason: updates.labels(name) for reason, name in _OUTCOMES.items()}
        self._refused = {
            (reason, written): refused.labels(reason.value, str(written).lower())
            for reason in Reason
            for written in (False, True)
        }
        self._log = structlog.get_logger().bind()

    def record_update(self, params: PaymentUpdate, update: Update) -> None:
        """Count an update that was written, by this request or an earlier one."""
        if update.replayed:
            self._replayed.inc()
            bind_contextvars(outcome="replayed")
            return
        self._applied.inc()
        if (refusal := update.would_be_refused) is not None:
            self._record_refused(params, refusal, written=True)

    def record_refusal(
        self,
        params: PaymentUpdate,
        error: IdempotencyKeyReused | EtagMismatch | PaymentEventRefused,
    ) -> None:
        """Count an update that was refused."""
        if isinstance(error, EtagMismatch):
            self._etag_mismatch.inc()
            bind_contextvars(outcome="etag_mismatch")
            return
        self._outcomes[error.reason].inc()
        self._record_refused(params, error, written=False)
        bind_contextvars(outcome=_OUTCOMES[error.reason])  # for the entry of the RPC

    def _record_refused(
        self,
        params: PaymentUpdate,
        error: IdempotencyKeyReused | PaymentEventRefused,
        *,
        written: bool,
    ) -> None:
        self._refused[error.reason, written].inc()
        level = logging.WARNING if error.reason in _FOR_PEOPLE else logging.INFO
        fields: dict[str, object] = {
            name: value
            for name in ("payment_provider", "payment_status", "payment_idempotency_key")
            if (value := getattr(params, name)) is not None
        }
        if isinstance(error, PaymentEventRefused):
            fields["state"] = error.now.name
        self._log.log(
            level,
            "payment event refused" if not written else "payment event would be refused",
            reason=error.reason.value,
            **fields,
        )
