"""What the sequences of providers do not tell of the model: the guard's switch, and the records."""

import pytest

from tests.support.payment_model import Known, Order, Reason, Request, Rules, amounts_disagree
from tests.support.payment_shop import Guard, Shop
from tests.support.payment_words import Reversal, State, plain

PAID = Request("paid", "stripe", payment_intent_id="pi_1")
REFUNDED = Request("refunded")
FAILED = Request("failed", payment_intent_id="pi_1")
PAID_TWICE = Request("paid", "stripe", payment_intent_id="pi_2")


def shop(guard: Guard = Guard.ON) -> Shop:
    return Shop({"a": Order(), "b": Order()}, guard=guard)


def test_the_guard_refuses_and_records() -> None:
    guarded = shop()
    answers = [guarded.update("a", each) for each in (PAID, FAILED)]
    assert answers == ["ok", "PAYMENT_STATUS_REFUSED"]
    assert [each.reason for each in guarded.refused] == [Reason.REFUSED]
    assert guarded.orders["a"].payment_state == State.PAID


def test_without_the_guard_everything_is_written_and_nothing_recorded() -> None:
    unguarded = shop(Guard.OFF)
    answers = [unguarded.update("a", each) for each in (PAID, FAILED, PAID_TWICE)]
    assert answers == ["ok", "ok", "ok"]
    assert unguarded.refused == []
    assert unguarded.orders["a"].payment_intent_id == "pi_2"


def test_shadow_writes_and_records_what_the_guard_would_refuse() -> None:
    shadowed = shop(Guard.SHADOW)
    answers = [shadowed.update("a", each) for each in (PAID, PAID_TWICE, FAILED)]
    assert answers == ["ok", "ok", "ok"]
    assert [each.reason for each in shadowed.refused] == [Reason.DUPLICATE, Reason.NOT_CURRENT]
    assert shadowed.orders["a"].payment_state == State.FAILED


@pytest.mark.parametrize("guard", Guard)
def test_the_currency_is_compared_whatever_the_guard(guard: Guard) -> None:
    any_shop = shop(guard)
    dollars = PAID._replace(currency="usd", override_reason="so be it")
    assert any_shop.update("a", dollars) == "PAYMENT_CURRENCY_MISMATCH"
    assert [each.reason for each in any_shop.refused] == [Reason.CURRENCY]


@pytest.mark.parametrize("guard", [Guard.SHADOW, Guard.OFF])
def test_a_refusal_by_currency_is_recorded_as_that_alone(guard: Guard) -> None:
    any_shop = shop(guard)
    any_shop.update("a", PAID)
    assert any_shop.update("a", PAID_TWICE._replace(currency="USD")) == Reason.CURRENCY
    assert [each.reason for each in any_shop.refused] == [Reason.CURRENCY]


def test_an_override_is_taken_without_a_record() -> None:
    guarded = shop()
    guarded.update("a", PAID)
    assert guarded.update("a", FAILED._replace(override_reason="by hand")) == "ok"
    assert guarded.refused == []
    assert guarded.history[-1].after.payment_state == State.FAILED


def test_equal_refusals_are_counted_whatever_their_key_time_or_etag() -> None:
    guarded = shop()
    guarded.update("a", PAID)
    for key, time in (("k1", 1), ("k2", 2), (None, None)):
        guarded.update(
            "a", PAID_TWICE._replace(payment_idempotency_key=key, payment_event_time=time)
        )
    guarded.update("a", PAID_TWICE._replace(captured_amount=1))
    assert [each.times for each in guarded.refused] == [3, 1]
    assert guarded.refused[0].request.payment_idempotency_key == "k1"


@pytest.mark.parametrize("request_", [PAID, PAID._replace(payment_idempotency_key="k1", etag="7")])
def test_an_order_that_is_not_there_leaves_no_trace(request_: Request) -> None:
    guarded = shop()
    assert guarded.update("c", request_) == "NOT_FOUND"
    assert guarded.refused == []
    assert guarded.keys == {}


def test_an_etag_changes_with_each_change_and_with_nothing_else() -> None:
    guarded = shop()
    keyed = PAID._replace(payment_idempotency_key="k1")
    etags = []
    for each in (keyed, keyed, FAILED, PAID._replace(etag="another"), PAID, REFUNDED):
        guarded.update("a", each)
        etags.append(guarded.orders["a"].etag)
    assert etags[0] == etags[1] == etags[2] == etags[3] == etags[4] != etags[5]


def test_words_are_a_parameter() -> None:
    rules = Rules({"bezahlt": State.PAID, "storniert": Reversal.REFUND})
    assert rules.target(Order(), Request("Be-zahlt")) == State.PAID
    assert rules.target(Order(), Request("paid")) == State.UNKNOWN
    refunded = Order(payment_state=State.REFUNDED)
    assert rules.target(refunded, Request("storniert")) == State.PAID
    assert rules.target(refunded, Request("storniert", refunded_amount=1)) == (
        State.PARTIALLY_REFUNDED
    )


def test_only_listed_providers_follow_up_by_intents_of_their_own() -> None:
    order = Order("paid", "IXO-pay", payment_intent_id="u1", payment_state=State.PAID)
    refund = Request("refunded", payment_intent_id="u2")
    listed = Rules(with_intents_of_their_own=("ixopay",))
    assert listed.judge(order, refund) is None
    assert listed.judge(order, refund, Known({"u2"})) == Reason.NOT_CURRENT
    assert listed.judge(order, refund, Known(duplicate=True)) == Reason.NOT_CURRENT
    assert Rules().judge(order, refund) == Reason.NOT_CURRENT


def test_case_is_that_of_ascii() -> None:
    assert plain(" Partially-RE_FUNDED\n") == "partiallyrefunded"
    assert plain("İÄ\N{NO-BREAK SPACE}") == "İÄ\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("state", "captured", "refunded", "disagree"),
    [
        (State.PAID, None, None, False),
        (State.PAID, 100, None, False),
        (State.PAID, 99, None, True),
        (State.PAID, 100, 0, False),
        (State.PAID, 100, 1, True),
        (State.PAID, None, 1, True),
        (State.DISPUTED, 100, 1, False),
        (State.AUTHORIZED, 0, None, False),
        (State.AUTHORIZED, 101, None, True),
        (State.DISPUTED, 50, 51, True),
        (State.REFUNDED, 50, 50, False),
        (State.REFUNDED, 50, 49, True),
        (State.REFUNDED, None, 100, False),
        (State.REFUNDED, 100, None, False),
        (State.PARTIALLY_REFUNDED, 100, 1, False),
        (State.PARTIALLY_REFUNDED, 100, 99, False),
        (State.PARTIALLY_REFUNDED, 100, 0, True),
        (State.PARTIALLY_REFUNDED, 100, 100, True),
        (State.PARTIALLY_REFUNDED, None, 0, True),
        (State.PARTIALLY_REFUNDED, None, 5, False),
        (State.PARTIALLY_REFUNDED, 100, None, False),
    ],
)
def test_amounts_disagree_with_each_other_the_total_or_the_state(
    state: State, captured: int | None, refunded: int | None, disagree: bool
) -> None:
    order = Order(
        payment_state=state, captured_amount=captured, refunded_amount=refunded, total_amount=100
    )
    assert amounts_disagree(order) is disagree
