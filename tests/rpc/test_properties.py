"""Properties of every valid update."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persistence.models import PAYMENT_COLUMNS
from persistence.payment_states import normalized
from tests.support import strategies
from tests.support.callers import Call
from tests.support.orders import Orders
from tests.support.updates import derived, update


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(payments=st.lists(strategies.payments, min_size=1, max_size=3))
def test_set_fields_are_stored_and_others_unchanged(
    call: Call, orders: Orders, payments: list[dict[str, str]]
) -> None:
    order_id = orders.add()
    for number, payment in enumerate(payments):
        # A key takes effect once: make it this update's own, within its length.
        if key := payment.get("payment_idempotency_key"):
            payment["payment_idempotency_key"] = f"{order_id}_{number}_{key}"[:255]
        before = orders.row(order_id)
        expected = payment | _kept(before["payment_provider"], payment)

        response = call(update(order_id, **payment))

        after: dict[str, Any] = orders.row(order_id)
        assert after == before | expected | derived(after)
        assert after["updated_at"] > before["updated_at"]
        assert response.order is not None
        assert response.order.updated_at is not None
        assert response.order.updated_at.to_datetime() == after["updated_at"]
        for name in PAYMENT_COLUMNS:
            answered = getattr(response.order, name) if response.order.has_field(name) else None
            assert answered == after[name]


def _kept(provider: str | None, payment: dict[str, str]) -> dict[str, str]:
    """Return the provider that the order has, where that of ``payment`` is another spelling."""
    given = payment.get("payment_provider")
    if provider is None or given is None or normalized(provider) != normalized(given):
        return {}
    return {"payment_provider": provider}
