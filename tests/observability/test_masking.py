"""Payment identifiers are masked in all fields of a log entry."""

from typing import Any

import pytest
from protobuf import Message, Oneof

from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    GetOrderRequest,
    UpdateOrderPaymentRequest,
)
from server.observability.masking import (
    MASKED_FIELDS,
    mask_entry,
    mask_identifier,
    set_current_request,
)
from tests.support.updates import update

LONG = "cs_test_a1B2c3D4e5"


def cleaned(text: str, request: Message[Any] | None = None) -> str:
    set_current_request(request or GetOrderRequest(order_id=1))
    entry = mask_entry(None, "info", {"event": "rpc", "text": text, "order_id": 1})
    assert (entry["event"], entry["order_id"]) == ("rpc", 1)
    return str(entry["text"])


@pytest.mark.parametrize("name", MASKED_FIELDS)
def test_identifiers_of_the_request(name: str) -> None:
    request = update(1, **{name: LONG})
    assert cleaned(f"is '{LONG}', twice: {LONG}", request) == "is 'cs_t…D4e5', twice: cs_t…D4e5"


def test_the_reference_of_find_order_by_payment() -> None:
    reference: Any = Oneof("payment_intent_id", LONG)
    assert LONG not in cleaned(LONG, FindOrderByPaymentRequest(reference=reference))


@pytest.mark.parametrize("text", ["req_evt_123", "evt_123-1", "(evt_123)", "_evt_123_"])
def test_a_short_identifier_beside_punctuation(text: str) -> None:
    request = UpdateOrderPaymentRequest(order_id=1, payment_idempotency_key="evt_123")
    assert cleaned(text, request) == text.replace("evt_123", "…")


def test_a_long_identifier_within_a_word() -> None:
    request = UpdateOrderPaymentRequest(order_id=1, payment_session_id=LONG)
    assert cleaned(f"_{LONG}_", request) == "_cs_t…D4e5_"


@pytest.mark.parametrize("odd", [r"\1", r"\g<0>" * 5, "(", "a|b", "[" * 20])
def test_an_identifier_that_looks_like_a_pattern(odd: str) -> None:
    request = UpdateOrderPaymentRequest(order_id=1, payment_session_id=odd)
    assert odd not in cleaned(f"it is {odd} .", request)


def test_constant_fields_are_not_masked() -> None:
    set_current_request(UpdateOrderPaymentRequest(order_id=1, payment_session_id="ok"))
    words = {"event": "ok", "level": "ok", "code": "ok", "method": "ok", "protocol": "ok"}
    assert mask_entry(None, "info", dict(words)) == words
    texts = {"event": "ok", "_record": object()}
    assert mask_entry(None, "info", texts)["event"] == "…"


def test_a_short_identifier_is_masked_as_a_whole_word() -> None:
    request = UpdateOrderPaymentRequest(order_id=1, payment_idempotency_key="a")
    assert cleaned("a key=(a) is a part of data", request) == "… key=(…) is … part of data"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "duplicate key\nDETAIL:  Key (payment_idempotency_key)=(evt_1\nevt_2) already exists.",
            "duplicate key\nDETAIL: (masked)",
        ),
        (
            "E: broken\nDETAIL:  Failing row contains (1, cs_1).\nHINT:  Mend it.\n",
            "E: broken\nDETAIL: (masked)\nHINT:  Mend it.\n",
        ),
        (
            "DataError: invalid input for query argument $4: 'cs_1' (too odd)"
            "\n\nThe above exception was the direct cause of the following exception:\n",
            "DataError: invalid input for query argument $4: (masked)"
            "\n\nThe above exception was the direct cause of the following exception:\n",
        ),
    ],
)
def test_values_that_errors_quote(text: str, left: str) -> None:
    assert cleaned(text) == left


def test_a_field_named_like_an_identifier() -> None:
    assert mask_entry(None, "info", {"payment_session_id": LONG}) == {
        "payment_session_id": mask_identifier(LONG)
    }


@pytest.mark.parametrize("identifier", ["x", "x" * 15, "abcd" * 4, "x" * 255])
def test_a_masked_identifier_discloses_little(identifier: str) -> None:
    assert len(mask_identifier(identifier)) <= max(1, len(identifier) // 2 + 1)
