"""Page tokens: round trips, forged tokens, tokens of other lists; page sizes."""

import base64
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from hypothesis import given
from hypothesis import strategies as st
from protobuf import Message

from persistence.models import OrderKey
from persistence.timestamps import microseconds_of, time_at
from server.gen.listings.v1.orders_pb import (
    ListOrderPaymentEventsRequest,
    ListOrdersRequest,
    ListRefusedPaymentEventsRequest,
    ListStuckPaymentsRequest,
    Order,
)
from server.rpc.pagination import DEFAULT_SIZE, MAX_SIZE, PageRequest
from tests.support import far_times

int64s = st.integers(-(2**63), 2**63 - 1)
keys = st.builds(OrderKey, st.datetimes(timezones=st.just(UTC)), int64s)

HASH_SIZE: Final = 8


def next_token(request: Message[Any], key: OrderKey) -> str:
    """The token of the page after the one of ``request``, whose last entry is at ``key``."""
    page = PageRequest(request, OrderKey)
    entries, token = page.split([key] * page.limit, lambda each: each)
    assert len(entries) == page.limit - 1
    return token


def refusal(request: Message[Any]) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        PageRequest(request, OrderKey)
    return caught.value


@given(key=keys)
def test_any_key_round_trips(key: OrderKey) -> None:
    token = next_token(ListOrdersRequest(buyer_id=7), key)

    assert PageRequest(ListOrdersRequest(buyer_id=7, page_token=token), OrderKey).after == key


@given(moment=far_times.moments)
def test_the_time_in_a_token_is_exact(moment: int) -> None:
    token = next_token(ListOrdersRequest(), OrderKey(time_at(moment), 1))

    after = PageRequest(ListOrdersRequest(page_token=token), OrderKey).after

    assert after is not None
    assert microseconds_of(after.created_at) == moment


def test_the_time_in_a_token_is_the_same_in_every_version() -> None:
    """It is one since 1970."""
    key = OrderKey(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), 7)
    token = base64.urlsafe_b64decode(next_token(ListOrdersRequest(), key))

    assert token[HASH_SIZE:] == (1_000_000).to_bytes(8) + (7).to_bytes(8)


@given(token=st.text(min_size=1) | st.binary(min_size=1).map(lambda b: b.hex()))
def test_any_text_is_rejected(token: str) -> None:
    error = refusal(ListOrdersRequest(page_token=token))

    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.startswith("page_token ")


@given(forged=st.binary(min_size=16, max_size=16))
def test_a_forged_token_is_rejected_or_is_a_key(forged: bytes) -> None:
    """The hash is no signature: a forged token may name any key, which discloses nothing more."""
    token = base64.urlsafe_b64decode(
        next_token(ListOrdersRequest(), OrderKey(datetime(2026, 1, 1, tzinfo=UTC), 1))
    )
    made_up = base64.urlsafe_b64encode(token[:HASH_SIZE] + forged).decode()

    try:
        after = PageRequest(ListOrdersRequest(page_token=made_up), OrderKey).after
    except ConnectError as error:
        assert error.code is Code.INVALID_ARGUMENT
    else:
        assert after is not None
        assert after.id == int.from_bytes(forged[-8:], signed=True)
        assert after.created_at.tzinfo is UTC


KEY: Final = OrderKey(datetime(2026, 1, 1, tzinfo=UTC), 1)


@pytest.mark.parametrize(
    "other",
    [
        ListOrdersRequest(),
        ListOrdersRequest(buyer_id=8),
        ListOrdersRequest(storefront_id=7),
        ListOrdersRequest(buyer_id=7, payment_status="paid"),
        ListOrdersRequest(buyer_id=7, payment_statuses=["paid"]),
        ListOrdersRequest(buyer_id=7, payment_states=[Order.PaymentState.PAID]),
        ListOrdersRequest(buyer_id=7, order_number="7"),
        ListOrdersRequest(buyer_id=7, amounts_disagree=True),
        ListStuckPaymentsRequest(),
        ListOrderPaymentEventsRequest(order_id=7),
        ListRefusedPaymentEventsRequest(order_id=7),
    ],
)
def test_a_token_of_another_list_is_rejected(other: Any) -> None:
    other.page_token = next_token(ListOrdersRequest(buyer_id=7), KEY)

    assert "other filters" in refusal(other).message


def test_a_token_of_another_method_is_rejected() -> None:
    token = next_token(ListOrdersRequest(), KEY)

    assert "other filters" in refusal(ListStuckPaymentsRequest(page_token=token)).message


PAID, FAILED = Order.PaymentState.PAID, Order.PaymentState.FAILED


@given(
    states=st.lists(st.sampled_from(list(Order.PaymentState)[1:]), unique=True),
    statuses=st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True),
    random=st.randoms(),
)
def test_values_of_a_filter_in_another_order(
    states: list[Order.PaymentState], statuses: list[str], random: Random
) -> None:
    token = next_token(ListOrdersRequest(payment_states=states, payment_statuses=statuses), KEY)
    random.shuffle(states)
    random.shuffle(statuses)
    same = ListOrdersRequest(payment_states=states, payment_statuses=statuses, page_token=token)

    assert PageRequest(same, OrderKey).after == KEY
    assert same.payment_states == states


def test_other_values_of_a_filter() -> None:
    token = next_token(ListOrdersRequest(payment_states=[PAID, FAILED]), KEY)

    for states in ([], [PAID], [PAID, Order.PaymentState.EXPIRED]):
        request = ListOrdersRequest(payment_states=states, page_token=token)
        assert "other filters" in refusal(request).message
    request = ListOrdersRequest(payment_statuses=["9", "6"], page_token=token)
    assert "other filters" in refusal(request).message


def test_the_hash_of_filters_is_the_same_in_every_version() -> None:
    """A token that one worker has issued continues the list at another, during a deployment."""
    before = ListOrdersRequest(buyer_id=7, payment_status="paid")
    states = ListOrdersRequest(payment_states=[PAID, FAILED], payment_statuses=["b", "a"])

    hashes = [base64.urlsafe_b64decode(next_token(each, KEY))[:8] for each in (before, states)]

    assert hashes == [bytes.fromhex("101977af01ee69ac"), bytes.fromhex("80af79155e883447")]
    history = next_token(ListOrderPaymentEventsRequest(order_id=7), KEY)
    assert history == "3f35RGYw6bUABkdIRiBAAAAAAAAAAAAB"


def test_a_token_of_another_order_of_the_list_is_rejected() -> None:
    request = ListStuckPaymentsRequest(page_token=next_token(ListStuckPaymentsRequest(), KEY))

    with pytest.raises(ConnectError, match="other filters"):
        PageRequest(request, OrderKey, sorted_by="payment_status_since")


@pytest.mark.parametrize("size", [0, 1, 1_000, 2**31 - 1])
def test_the_page_size_may_change_between_pages(size: int) -> None:
    token = next_token(ListOrdersRequest(buyer_id=7, page_size=3), KEY)

    assert (
        PageRequest(ListOrdersRequest(buyer_id=7, page_size=size, page_token=token), OrderKey).after
        == KEY
    )


@pytest.mark.parametrize(
    ("asked", "given"),
    [(0, DEFAULT_SIZE), (1, 1), (1_000, 1_000), (1_001, MAX_SIZE), (2**31 - 1, MAX_SIZE)],
)
def test_page_size_is_defaulted_and_capped(asked: int, given: int) -> None:
    page = PageRequest(ListOrdersRequest(page_size=asked), OrderKey)
    entries = [OrderKey(KEY.created_at, number) for number in range(page.limit)]

    assert page.after is None
    assert page.limit == given + 1
    assert page.split(entries, lambda each: each)[0] == entries[:given]
    assert page.split(entries, lambda each: each)[1]
    assert page.split(entries[:given], lambda each: each) == (entries[:given], "")
    assert page.split([], lambda each: each) == ([], "")


def test_the_token_holds_the_key_of_the_last_returned_entry() -> None:
    entries = [OrderKey(KEY.created_at, number) for number in range(3)]

    page, token = PageRequest(ListOrdersRequest(page_size=2), OrderKey).split(
        entries, lambda each: each
    )

    assert PageRequest(ListOrdersRequest(page_token=token), OrderKey).after == page[-1]
