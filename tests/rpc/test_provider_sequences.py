"""What providers send, as calls of the service: answers, orders and records agree with the model.

Each sequence has orders of its own in one database, and the sequences are played at the same time.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from protobuf.wkt import Timestamp

from persistence.models import PAYMENT_COLUMNS
from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
)
from tests.support import by_model, on_record
from tests.support.callers import CALLERS, Call, Failure
from tests.support.orders import Orders
from tests.support.provider_sequences import SEQUENCES, Event, Sequence
from tests.support.provider_sequences.played import microseconds, play
from tests.support.provider_sequences.sequence import (
    CURRENT,
    ETAG_MISMATCH,
    KEY_REUSED,
    MISSING_ORDER,
    NOT_FOUND,
    OK,
    ORDER,
    OTHER_ORDER,
    REPLAYED,
    TOTAL,
)
from tests.support.service import Service

RULES: Final = by_model.rules()
AT_ONCE: Final = 8
CODES: Final = {
    KEY_REUSED: "already_exists",
    ETAG_MISMATCH: "aborted",
    NOT_FOUND: "not_found",
}
FIELDS: Final = (
    *PAYMENT_COLUMNS,
    *("captured_amount", "refunded_amount", "currency", "override_reason"),
)


class Trial(NamedTuple):
    """A sequence, with keys that no other one has, and the ids of its orders."""

    sequence: Sequence
    ids: dict[str, int]


@pytest.mark.parametrize("protocol", ["grpcio", "connect-json-http1"])
def test_what_providers_send_is_answered_and_ends_as_the_model_has_it(
    protocol: str, running: Service, orders: Orders
) -> None:
    trials = [_trial(each, orders) for each in SEQUENCES]
    with CALLERS[protocol](running.base_url) as call, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda trial: tuple(_answers(call, trial)), trials))
    with psycopg.connect(running.database_url) as connection:
        found = [
            difference
            for trial, given in zip(trials, answers, strict=True)
            for difference in _differences(trial, given, orders, connection)
        ]
    assert not found, "\n".join(found)


def _trial(sequence: Sequence, orders: Orders) -> Trial:
    parts = dict.fromkeys(("shipping_amount", "tax_amount", "discount_amount"), 0)
    ids = {
        name: orders.add(subtotal_amount=TOTAL, total_amount=TOTAL, **parts)
        for name in (ORDER, OTHER_ORDER)
    }
    events = tuple(
        event._replace(
            payment_idempotency_key=event.payment_idempotency_key
            and f"{ids[ORDER]} {event.payment_idempotency_key}"
        )
        for event in sequence.events
    )
    return Trial(sequence._replace(events=events), ids | {MISSING_ORDER: 2**62 + ids[ORDER]})


def _answers(call: Call, trial: Trial) -> Iterator[str]:
    before = {name: _etag(call, trial, name) for name in (ORDER, OTHER_ORDER)}
    for event in trial.sequence.events:
        etag = None
        if event.etag is not None:
            is_current = event.etag == CURRENT
            etag = _etag(call, trial, event.order) if is_current else before[event.order]
        yield _answer(call, _request(trial.ids[event.order], event, etag))


def _etag(call: Call, trial: Trial, name: str) -> str:
    return str(call(GetOrderRequest(order_id=trial.ids[name])).order.etag)


def _request(order_id: int, event: Event, etag: str | None) -> UpdateOrderPaymentRequest:
    values: dict[str, Any] = {name: getattr(event, name) for name in FIELDS} | {"etag": etag}
    if event.payment_event_time is not None:
        seconds, rest = divmod(microseconds(event.payment_event_time), 1_000_000)
        values["payment_event_time"] = Timestamp(seconds=seconds, nanos=rest * 1_000)
    given = {name: value for name, value in values.items() if value is not None}
    return UpdateOrderPaymentRequest(order_id=order_id, **given)


def _answer(call: Call, request: UpdateOrderPaymentRequest) -> str:
    """Return the answer as sequences name it, with the code where the reason has another."""
    try:
        response = call(request)
    except Failure as failure:
        infos = [each for each in failure.details if isinstance(each, ErrorInfo)]
        reason = infos[0].reason if infos else failure.code.upper()
        expected = CODES.get(reason, "failed_precondition")
        return reason if failure.code == expected else f"{reason} with {failure.code}"
    return REPLAYED if response.replayed else OK


def _differences(
    trial: Trial, answers: tuple[str, ...], orders: Orders, connection: psycopg.Connection[Any]
) -> Iterator[str]:
    """Yield what of a trial differs from the sequence, or from the model of the rules."""
    name, shop = trial.sequence.name, play(trial.sequence, RULES).shop
    expected = tuple(event.answer for event in trial.sequence.events)
    if answers != expected:
        yield f"{name} is answered {answers}, not {expected}"
    for each, order in shop.orders.items():
        row = by_model.order(orders.row(trial.ids[each]))
        if row != order._replace(changes=0):
            yield f"{name}: {each} is {row}, not {order}"
    state = by_model.order(orders.row(trial.ids[ORDER])).payment_state
    if state != trial.sequence.state:
        yield f"{name} ends in {state}, not {trial.sequence.state}"
    names = {order_id: each for each, order_id in trial.ids.items()}
    recorded, refused = on_record.in_table(connection, names), on_record.in_model(shop)
    if recorded != refused:
        yield f"{name} leaves on record {recorded}, not {refused}"
