"""The handler of ``listings.v1.OrderService``: messages in, messages out, no SQL."""

from connectrpc.request import RequestContext
from protobuf.wkt import Timestamp

from persistence.orders import OrderRepository
from persistence.records import PAYMENT_COLUMNS
from persistence.records import Order as OrderRecord
from server.gen.listings.v1.orders_connect import OrderService
from server.gen.listings.v1.orders_pb import (
    Order,
    UpdateOrderPaymentRequest,
    UpdateOrderPaymentResponse,
)


class OrderHandler(OrderService):
    """Implements ``OrderService``. What each rpc does, and its errors, stand in the proto."""

    def __init__(self, orders: OrderRepository) -> None:
        self._orders = orders

    async def update_order_payment(
        self,
        request: UpdateOrderPaymentRequest,
        _ctx: RequestContext[UpdateOrderPaymentRequest, UpdateOrderPaymentResponse],
    ) -> UpdateOrderPaymentResponse:
        """Write the payment fields that are set in ``request``."""
        # A payment field has the same name in the request as in the table.
        params = {
            name: getattr(request, name) for name in PAYMENT_COLUMNS if request.has_field(name)
        }
        order = await self._orders.update_payment_info(request.order_id, params)
        return UpdateOrderPaymentResponse(success=True, order=_message(order))


def _message(order: OrderRecord) -> Order:
    return Order(
        id=order.id,
        order_number=order.order_number,
        buyer_id=order.buyer_id,
        storefront_id=order.storefront_id,
        status=order.status,
        payment_status=order.payment_status,
        currency=order.currency,
        subtotal_amount=order.subtotal_amount,
        shipping_amount=order.shipping_amount,
        tax_amount=order.tax_amount,
        discount_amount=order.discount_amount,
        total_amount=order.total_amount,
        created_at=Timestamp.from_datetime(order.created_at),
        updated_at=Timestamp.from_datetime(order.updated_at),
        payment_provider=order.payment_provider,
        payment_session_id=order.payment_session_id,
        payment_intent_id=order.payment_intent_id,
        payment_idempotency_key=order.payment_idempotency_key,
        payment_transaction_id=order.payment_transaction_id,
    )
