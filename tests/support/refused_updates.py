"""Updates of payments that are refused, and the record of refused events, read by plain SQL."""

from typing import Any, Final

from persistence import errors
from persistence.models import Origin, PaymentUpdate
from persistence.orders import OrderRepository
from tests.support.history import connect

PAID: Final = PaymentUpdate(
    payment_provider="stripe",
    payment_session_id="cs_1",
    payment_intent_id="pi_1",
    payment_status="paid",
)
LATE_FAILURE: Final = PaymentUpdate(payment_intent_id="pi_1", payment_status="failed")
SECOND: Final = PaymentUpdate(payment_intent_id="pi_2", payment_status="succeeded")


def refused(url: str) -> list[dict[str, Any]]:
    with connect(url) as connection:
        return connection.execute("SELECT * FROM refused_payment_events ORDER BY id").fetchall()


async def refuse(
    repository: OrderRepository, order_id: int, update: PaymentUpdate, origin: Origin | None = None
) -> str:
    """Make an update that is refused, and return the reason."""
    try:
        await repository.update_payment_info(order_id, update, origin or Origin("request"))
    except (errors.PaymentEventRefused, errors.IdempotencyKeyReused) as refusal:
        return refusal.reason.value
    raise AssertionError("it is not refused")
