"""The handler of ``listings.v1.OrderService``: messages in, messages out, no SQL."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from connectrpc.request import RequestContext
from protobuf import Message
from protobuf.wkt import Timestamp

from persistence.errors import EtagMismatch, IdempotencyKeyReused, PaymentEventRefused
from persistence.history import EventFilter, PaymentHistory
from persistence.models import (
    HistoryKey,
    OrderFilter,
    OrderKey,
    Origin,
    RefusedEvent,
    RefusedFilter,
)
from persistence.models import Order as OrderRecord
from persistence.models import PaymentEvent as EventRecord
from persistence.orders import OrderRepository
from persistence.payment_states import PaymentState
from persistence.positions import Position
from persistence.refused_event_log import RefusedEventLog
from persistence.watch import ChangeFeed
from server.auth.principal import current_principal
from server.gen.listings.v1.orders_connect import OrderService
from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    FindOrderByPaymentResponse,
    GetOrderRequest,
    GetOrderResponse,
    ListOrderPaymentEventsRequest,
    ListOrderPaymentEventsResponse,
    ListOrderPaymentsRequest,
    ListOrderPaymentsResponse,
    ListOrdersRequest,
    ListOrdersResponse,
    ListRefusedPaymentEventsRequest,
    ListRefusedPaymentEventsResponse,
    ListStuckPaymentsRequest,
    ListStuckPaymentsResponse,
    UpdateOrderPaymentRequest,
    UpdateOrderPaymentResponse,
    WatchOrderPaymentsRequest,
    WatchOrderPaymentsResponse,
)
from server.observability.outcomes import UpdateOutcomes
from server.rpc.conversion import (
    datetime_from,
    event_message,
    order_message,
    payment_message,
    payment_update,
    refused_event_message,
)
from server.rpc.errors import permission_denied
from server.rpc.interceptors.base import Context
from server.rpc.interceptors.request_id import request_id
from server.rpc.pagination import PageRequest


class OrderHandler(OrderService):
    """Implements ``OrderService``. The proto documents each rpc and its errors."""

    def __init__(
        self,
        orders: OrderRepository,
        history: PaymentHistory,
        refused: RefusedEventLog,
        feed: ChangeFeed,
        outcomes: UpdateOutcomes,
    ) -> None:
        self._orders = orders
        self._history = history
        self._refused = refused
        self._feed = feed
        self._outcomes = outcomes

    async def update_order_payment(
        self,
        request: UpdateOrderPaymentRequest,
        ctx: RequestContext[UpdateOrderPaymentRequest, UpdateOrderPaymentResponse],
    ) -> UpdateOrderPaymentResponse:
        """Write the payment fields that are set in ``request``."""
        params = payment_update(request)
        caller = current_principal.get()
        origin = Origin(request_id(ctx), caller and caller.subject)
        try:
            update = await self._orders.update_payment_info(
                request.order_id, params, origin, _storefronts()
            )
        except (IdempotencyKeyReused, EtagMismatch, PaymentEventRefused) as refusal:
            self._outcomes.record_refusal(params, refusal)
            raise
        self._outcomes.record_update(params, update)
        return UpdateOrderPaymentResponse(
            success=True, order=order_message(update.order), replayed=update.replayed
        )

    async def get_order(self, request: GetOrderRequest, _ctx: Context) -> GetOrderResponse:
        """Return one order."""
        order = await self._orders.get(request.order_id, _storefronts())
        return GetOrderResponse(order=order_message(order))

    async def find_order_by_payment(
        self, request: FindOrderByPaymentRequest, _ctx: Context
    ) -> FindOrderByPaymentResponse:
        """Return the order that has, or had, a payment reference, or has refused it."""
        assert request.reference is not None  # noqa: S101 - a rule in the proto requires it
        found = await self._orders.find_by_payment(
            request.reference.field,
            request.reference.value,
            _given(request, "payment_provider"),
            _storefronts(),
        )
        return FindOrderByPaymentResponse(
            order=order_message(found.order), refused=found.is_refused
        )

    async def list_orders(self, request: ListOrdersRequest, _ctx: Context) -> ListOrdersResponse:
        """Return a page of orders, newest first."""
        storefront_id = _permitted_storefront(request)
        page = PageRequest(request, OrderKey)
        wanted = OrderFilter(
            payment_status=_given(request, "payment_status"),
            payment_provider=_given(request, "payment_provider"),
            storefront_id=storefront_id,
            buyer_id=_given(request, "buyer_id"),
            created_from=_limit(request.created_from),
            created_before=_limit(request.created_before),
            order_number=_given(request, "order_number"),
            order_status=_given(request, "order_status"),
            payment_states=frozenset(map(PaymentState, request.payment_states)),
            payment_statuses=tuple(request.payment_statuses),
            amounts_disagree=request.amounts_disagree,
        )
        storefronts = _storefronts() if storefront_id is None else None
        found = await self._orders.list_orders(wanted, page.limit, page.after, storefronts)
        orders, token = page.split(found, _order_key)
        return ListOrdersResponse(orders=list(map(order_message, orders)), next_page_token=token)

    async def list_stuck_payments(
        self, request: ListStuckPaymentsRequest, _ctx: Context
    ) -> ListStuckPaymentsResponse:
        """Return a page of orders whose payments are stuck, longest first."""
        assert request.older_than is not None  # noqa: S101 - a rule in the proto requires it
        page = PageRequest(request, OrderKey, sorted_by="payment_status_since")
        unchanged_since = datetime.now(UTC) - request.older_than.to_timedelta()
        found = await self._orders.list_stuck(
            unchanged_since,
            _given(request, "payment_provider"),
            page.limit,
            page.after,
            _storefronts(),
        )
        orders, token = page.split(found, _stuck_key)
        return ListStuckPaymentsResponse(
            orders=list(map(order_message, orders)), next_page_token=token
        )

    async def list_order_payment_events(
        self, request: ListOrderPaymentEventsRequest, _ctx: Context
    ) -> ListOrderPaymentEventsResponse:
        """Return a page of the events of one order's payment, oldest first."""
        if request.include_refused:
            return await self._list_with_refused(request)
        page = PageRequest(request, OrderKey)
        after_id = page.after.id if page.after else 0
        storefronts = _storefronts()
        found = await self._history.list_events(request.order_id, page.limit, after_id, storefronts)
        if not found:  # raises OrderNotFound if there is no such order
            await self._orders.get(request.order_id, storefronts)
        events, token = page.split(found, _event_key)
        return ListOrderPaymentEventsResponse(
            events=list(map(event_message, events)), next_page_token=token
        )

    async def _list_with_refused(
        self, request: ListOrderPaymentEventsRequest
    ) -> ListOrderPaymentEventsResponse:
        page = PageRequest(request, HistoryKey)
        storefronts = _storefronts()
        found = await self._history.list_with_refused(
            request.order_id, page.limit, page.after, storefronts
        )
        has_taken = any(isinstance(each.event, EventRecord) for each in found)
        # Events are also refused for orders that there never were.
        if not has_taken and not (page.after and page.after.event_id):
            await self._orders.get(request.order_id, storefronts)
        entries, token = page.split(found, lambda entry: entry.key)
        events = [each.event for each in entries]
        return ListOrderPaymentEventsResponse(
            events=[event_message(each) for each in events if isinstance(each, EventRecord)],
            refused=[
                refused_event_message(each) for each in events if isinstance(each, RefusedEvent)
            ],
            next_page_token=token,
        )

    async def list_order_payments(
        self, request: ListOrderPaymentsRequest, _ctx: Context
    ) -> ListOrderPaymentsResponse:
        """Return the attempts to pay one order, oldest first."""
        storefronts = _storefronts()
        payments = await self._history.list_payments(request.order_id, storefronts)
        # Events are also refused for orders that there never were.
        if not any(each.taken_events for each in payments):
            await self._orders.get(request.order_id, storefronts)
        return ListOrderPaymentsResponse(payments=list(map(payment_message, payments)))

    async def list_refused_payment_events(
        self, request: ListRefusedPaymentEventsRequest, _ctx: Context
    ) -> ListRefusedPaymentEventsResponse:
        """Return a page of refused events, newest first."""
        storefront_id = _permitted_storefront(request)
        page = PageRequest(request, OrderKey)
        wanted = RefusedFilter(
            order_id=_given(request, "order_id"),
            reason=_given(request, "reason"),
            payment_provider=_given(request, "payment_provider"),
            storefront_id=storefront_id,
            refused_from=_limit(request.refused_from),
            refused_before=_limit(request.refused_before),
        )
        storefronts = _storefronts() if storefront_id is None else None
        found = await self._refused.list_events(wanted, page.limit, page.after, storefronts)
        events, token = page.split(found, _refused_key)
        return ListRefusedPaymentEventsResponse(
            events=list(map(refused_event_message, events)), next_page_token=token
        )

    async def watch_order_payments(
        self, request: WatchOrderPaymentsRequest, _ctx: Context
    ) -> AsyncIterator[WatchOrderPaymentsResponse]:
        """Send the events of some payments, as they are committed."""
        storefront_id = _permitted_storefront(request)
        wanted = EventFilter(
            frozenset(request.order_ids),
            frozenset() if storefront_id is None else frozenset((storefront_id,)),
            _storefronts() if storefront_id is None else None,
            include_refused=request.include_refused,
        )
        position = Position.parse(request.last_event_id) if request.last_event_id else None
        async with aclosing(self._feed.watch(wanted, position)) as stream:
            async for event, seen in stream:
                if isinstance(event, RefusedEvent):
                    refused = refused_event_message(event)
                    yield WatchOrderPaymentsResponse(refused=refused, event_id=str(seen))
                else:
                    yield WatchOrderPaymentsResponse(
                        event=event and event_message(event), event_id=str(seen)
                    )


def _storefronts() -> frozenset[int] | None:
    """Return the storefronts whose orders the caller may see, None for all."""
    caller = current_principal.get()
    return caller and caller.storefronts


def _permitted_storefront(
    request: ListOrdersRequest | ListRefusedPaymentEventsRequest | WatchOrderPaymentsRequest,
) -> int | None:
    """Return the storefront that ``request`` names, or None.

    Raises ConnectError, PERMISSION_DENIED, if the caller may not see its orders.
    """
    storefront_id: int | None = _given(request, "storefront_id")
    allowed = _storefronts()
    if storefront_id is not None and allowed is not None and storefront_id not in allowed:
        text = f"the token is limited to storefronts other than {storefront_id}"
        raise permission_denied(text, storefront_id=str(storefront_id))
    return storefront_id


def _given(request: Message[Any], name: str) -> Any:
    """Return the value of a field, None if it is not set."""
    return getattr(request, name) if request.has_field(name) else None


def _limit(timestamp: Timestamp | None) -> datetime | None:
    """Return a limit of a time range, rounded up: the same is before it and not before it."""
    return None if timestamp is None else datetime_from(timestamp, round_up=True)


def _order_key(order: OrderRecord) -> OrderKey:
    return OrderKey(order.created_at, order.id)


def _stuck_key(order: OrderRecord) -> OrderKey:
    assert order.payment_status_since is not None  # noqa: S101 - a condition of the list
    return OrderKey(order.payment_status_since, order.id)


def _event_key(event: EventRecord) -> OrderKey:
    return OrderKey(event.created_at, event.id)


def _refused_key(event: RefusedEvent) -> OrderKey:
    return OrderKey(event.first_refused_at, event.id)
