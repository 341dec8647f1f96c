"""A sequence, played through the model of the rules."""

from typing import NamedTuple

from tests.support.payment_model import Order, Request, Rules
from tests.support.payment_shop import Shop
from tests.support.provider_sequences.sequence import (
    BASE,
    ORDER,
    OTHER_ORDER,
    TOTAL,
    Event,
    Sequence,
)


class Played(NamedTuple):
    """What the model makes of a sequence."""

    answers: tuple[str, ...]
    shop: Shop


def play(sequence: Sequence, rules: Rules | None = None) -> Played:
    """Return what the model answers to each event, and the orders and records at the end."""
    shop = Shop(
        {name: Order(total_amount=TOTAL) for name in (ORDER, OTHER_ORDER)}, rules or Rules()
    )
    answers = [str(shop.update(event.order, request(event, shop))) for event in sequence.events]
    return Played(tuple(answers), shop)


def request(event: Event, shop: Shop) -> Request:
    """Return the model's request for an event, with the etag that its marker stands for."""
    time = event.payment_event_time
    values = event._asdict() | {
        "payment_event_time": None if time is None else microseconds(time),
        "etag": _etag(event, shop),
    }
    return Request(**{name: values[name] for name in Request._fields})


def microseconds(seconds: float) -> int:
    """Return a time of an event in microseconds since 1970."""
    return int(BASE.timestamp()) * 1_000_000 + round(seconds * 1_000_000)


def _etag(event: Event, shop: Shop) -> str | None:
    match event.etag:
        case None:
            return None
        case "current":
            return shop.orders[event.order].etag
    return Order().etag
