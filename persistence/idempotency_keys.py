"""What an idempotency key was used for: by which order, and for which request."""

import hashlib
from typing import Final, NamedTuple

from persistence import queries
from persistence.database import Database
from persistence.models import Order, PaymentEvent, PaymentUpdate

# What the same request has in common with its repetition: all fields but etag and override_reason,
# which are the last.
_IDENTITY: Final = PaymentUpdate._fields[: PaymentUpdate._fields.index("etag")]


class UseOfKey(NamedTuple):
    """What a key was used for."""

    order_id: int | None = None
    """The order that the key belongs to; None if it belongs to none."""
    is_same_request: bool = False
    """Whether an earlier event of the request's order is the same request."""


class IdempotencyKeys:
    """Looks up the uses of keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def use(
        self, order_id: int, update: PaymentUpdate, digest: str | None, order: Order | None
    ) -> UseOfKey:
        """Return what the key of ``update`` was used for before.

        ``digest`` is ``request_digest(update)``; ``order`` is the one with ``order_id``, if there
        is one. The history has the uses of a key. Where its event was deleted, only the order's
        own column has the key. Raises a PersistenceError.
        """
        key = update.payment_idempotency_key
        if key is None:
            return UseOfKey()
        rows = await self._database.fetch(queries.get_events_by_key(), key, digest)
        events = [PaymentEvent._make(row) for row in rows]
        if any(each.order_id == order_id and _is_same(each, update, digest) for each in events):
            return UseOfKey(order_id, is_same_request=True)
        owners = {each.order_id for each in events}
        if others := owners - {order_id}:
            return UseOfKey(min(others))
        if order is not None and order.payment_idempotency_key == key:
            return UseOfKey(order_id)
        row = await self._database.fetchrow(queries.get_order_id_by_key(), key)
        # If this order has the key by now, the next try finds the event that brought it.
        if row is not None and row[0] != order_id:
            return UseOfKey(row[0])
        return UseOfKey(order_id if owners else None)


def request_digest(update: PaymentUpdate) -> str:
    """Return what distinguishes a request with a key from others with the same key."""
    given = zip(_IDENTITY, update, strict=False)
    text = "\0".join([f"{name}={value}" for name, value in given if value is not None])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_same(event: PaymentEvent, update: PaymentUpdate, digest: str | None) -> bool:
    if event.request_digest is not None:
        return event.request_digest.hex == digest
    # Of the version before. An event that was made from a payment older than the history does not
    # have the fields.
    values = {name: getattr(update, name) for name in _IDENTITY}
    given = {name: value for name, value in values.items() if value is not None}
    fields = given.keys() if event.request_fields is None else set(event.request_fields)
    return fields == given.keys() and all(
        getattr(event, f"{name}_after", None) == value for name, value in given.items()
    )
