"""Whether an update that has written nothing is a replay or refused: read after the fact."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from persistence import queries, statuses
from persistence.database import Database
from persistence.errors import IdempotencyKeyReused, PaymentStatusRefused
from persistence.models import Order, PaymentEvent, Storefronts, Update


class UnwrittenUpdate:
    """Resolves updates that returned no row."""

    def __init__(
        self,
        database: Database,
        get_order: Callable[[int, Storefronts], Awaitable[Order]],
        disallowed_before: Callable[[str], Sequence[str]],
    ) -> None:
        """Read by ``get_order``, which raises OrderNotFound.

        ``disallowed_before`` returns the statuses that a status may not follow.
        """
        self._database = database
        self._get_order = get_order
        self._disallowed_before = disallowed_before

    async def resolve(
        self, order_id: int, params: Mapping[str, str], storefronts: Storefronts
    ) -> Update | None:
        """Return the replay of an earlier update, or raise why this one was refused.

        None, when no reason holds any more: then the update may be tried again. Raises
        OrderNotFound, IdempotencyKeyReused, PaymentStatusRefused or another PersistenceError.

        The order of the checks decides what a caller with ``storefronts`` learns of others: first,
        whether there is the order for this caller; the use of a key only when the status allows the
        update.
        """
        if storefronts is not None:
            await self._get_order(order_id, storefronts)
        event = await self._event_of_key(params)
        if event is None:
            await self._check_status(order_id, params)
            return None
        if event.order_id == order_id and _is_same_request(event, params):
            return Update(await self._get_order(order_id, None), replayed=True)
        if storefronts is not None:
            await self._check_status(order_id, params)
        raise IdempotencyKeyReused(order_id, used_for=event.order_id)

    async def _event_of_key(self, params: Mapping[str, str]) -> PaymentEvent | None:
        """Return the event for which the idempotency key was used before."""
        key = params.get("payment_idempotency_key")
        if key is None:
            return None
        row = await self._database.fetchrow(queries.get_event_by_key(), key)
        return None if row is None else PaymentEvent._make(row)

    async def _check_status(self, order_id: int, params: Mapping[str, str]) -> None:
        order = await self._get_order(order_id, None)
        status = params.get("payment_status")
        if status is not None and order.payment_status in self._disallowed_before(status):
            allowed = statuses.allowed_after(order.payment_status)
            raise PaymentStatusRefused(order.id, order.payment_status, status, allowed)


def _is_same_request(event: PaymentEvent, params: Mapping[str, str]) -> bool:
    # An event that was made from a payment older than the history does not have the fields.
    fields = params.keys() if event.request_fields is None else set(event.request_fields)
    return fields == params.keys() and all(
        getattr(event, f"{name}_after") == value for name, value in params.items()
    )
