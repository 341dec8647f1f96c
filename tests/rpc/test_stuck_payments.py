"""ListStuckPayments, over every protocol."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import pytest
from protobuf.wkt import Duration

from persistence.status_words import StatusWords
from server.gen.google.rpc.error_details_pb import BadRequest
from server.gen.listings.v1.orders_pb import ListStuckPaymentsRequest
from tests.support.callers import READERS, Call, json_failure, path
from tests.support.orders import Orders
from tests.support.reading import LONG_AGO, SECOND, broken_rules, ids, pages
from tests.support.service import Service

UNDECIDED: Final = ("pending", "PROCESSING", "requires-action", "authorized", "piad")
DECIDED: Final = ("failed", "canceled", "expired", "Paid", "refunded", "disputed", "dispute_won")
WORDS: Final = StatusWords.builtin()
DAY: Final = Duration(seconds=86_400)


def test_stuck_payments(read: Call, orders: Orders, number: int) -> None:
    """Open and unknown payments with a provider, in a state for long: longest first, then by id."""
    provider: Any = {"payment_provider": f"p{number}"}
    then = {"payment_status_since": LONG_AGO}
    same_age = []
    for status in UNDECIDED:
        state = WORDS.state(status).value
        same_age.append(orders.add(payment_status=status, payment_state=state, **provider, **then))
        same_age.append(orders.add(payment_status=status, **provider, **then))  # state is null
    longest = orders.add(**provider, payment_status_since=LONG_AGO - SECOND)
    for status in DECIDED:
        state = WORDS.state(status).value
        orders.add(payment_status=status, payment_state=state, **provider, **then)
        orders.add(payment_status=status, **provider, **then)
    # As after a reversal: the state counts, and not the word.
    orders.add(payment_status="pending", payment_state=9, **provider, **then)
    orders.add(**provider, created_at=LONG_AGO)  # in its state since now
    without = orders.add(payment_session_id="cs", **then)
    other = orders.add(payment_provider=f"other {number}", **then)

    response = read(ListStuckPaymentsRequest(older_than=DAY, **provider))

    assert ids(response) == [longest, *same_age]
    assert {each.payment_status_since.to_datetime() for each in response.orders} == {
        LONG_AGO - SECOND,
        LONG_AGO,
    }
    spelled = ListStuckPaymentsRequest(older_than=DAY, payment_provider=f"P-{number} ")
    assert ids(read(spelled)) == ids(response)
    everything = pages(read, ListStuckPaymentsRequest(older_than=DAY), [1_000])
    found = [each for page in everything for each in ids(page)]
    assert [each for each in found if each >= same_age[0]] == [longest, *same_age, other]
    assert without not in found


def test_older_than_selects_by_the_last_change_of_state(
    read: Call, orders: Orders, number: int
) -> None:
    now = datetime.now(UTC)
    provider: Any = {"payment_provider": f"p{number}", "payment_state": 2}
    created = {"created_at": now - timedelta(days=9), "updated_at": now}
    fresh = orders.add(**created, **provider, payment_status_since=now)
    hour = orders.add(**created, **provider, payment_status_since=now - timedelta(hours=1))

    def stuck(**older_than: int) -> list[int]:
        wanted = ListStuckPaymentsRequest(
            older_than=Duration(**older_than), payment_provider=f"p{number}"
        )
        return ids(read(wanted))

    assert stuck() == [hour, fresh]
    assert stuck(seconds=3_000) == [hour]
    assert stuck(seconds=3_600 * 2) == []


def test_the_same_status_again_leaves_an_order_on_the_list(
    read: Call, orders: Orders, number: int
) -> None:
    provider = f"p{number}"
    order_id = orders.add(payment_provider=provider, payment_state=2, payment_status_since=LONG_AGO)
    orders.change(order_id, updated_at=datetime.now(UTC))

    response = read(ListStuckPaymentsRequest(older_than=DAY, payment_provider=provider))

    assert ids(response) == [order_id]


def test_pages_of_stuck_payments(read: Call, orders: Orders, number: int) -> None:
    """In the order of the states' age, which is not that of the orders."""
    provider: Any = {"payment_provider": f"p{number}"}
    added = [
        orders.add(
            **provider,
            created_at=LONG_AGO - each * SECOND,
            payment_status_since=LONG_AGO + each // 3 * SECOND,
        )
        for each in range(7)
    ]
    for sizes in ([1], [3], [7], [2, 4], [0]):
        request = ListStuckPaymentsRequest(older_than=Duration(seconds=60), **provider)
        found = [each for page in pages(read, request, sizes) for each in ids(page)]
        assert found == added


def test_a_page_token_of_the_list_by_age_is_refused(read: Call, number: int) -> None:
    """It is one of the version before: of the same request, with created_at as the place."""
    request = ListStuckPaymentsRequest(older_than=DAY, payment_provider=f"p{number}")
    filters = b"listings.v1.ListStuckPaymentsRequest\0" + request.to_binary()
    place = hashlib.sha256(filters).digest()[:8] + bytes(7) + b"\1" + bytes(7) + b"\1"
    request.page_token = base64.urlsafe_b64encode(place).decode()

    assert broken_rules(read, request) == [("page_token", "PAGE_TOKEN_INVALID")]


@pytest.mark.parametrize(
    ("older_than", "reason"),
    [
        (None, "REQUIRED"),
        (Duration(seconds=-1), "DURATION_GTE_LTE"),
        (Duration(nanos=-1), "DURATION_GTE_LTE"),
        (Duration(seconds=315_360_000, nanos=1), "DURATION_GTE_LTE"),
    ],
)
def test_an_invalid_older_than(read: Call, older_than: Duration | None, reason: str) -> None:
    request = ListStuckPaymentsRequest(older_than=older_than)

    assert broken_rules(read, request) == [("older_than", reason)]


@pytest.mark.parametrize(
    "older_than",
    [
        Duration(seconds=60, nanos=10**9),
        Duration(seconds=60, nanos=-1),
        Duration(seconds=-1, nanos=1),
        Duration(seconds=60, nanos=-(10**9)),
    ],
)
def test_nanos_that_json_cannot_express(running: Service, older_than: Duration) -> None:
    request = ListStuckPaymentsRequest(older_than=older_than)
    for caller in ("grpcio", "connect-binary"):
        with READERS[caller](running.base_url) as read:
            assert broken_rules(read, request) == [("older_than", "DURATION_NANOS")]


@pytest.mark.parametrize("older_than", ["60.1000000000s", "60.-1s", "-1.-1s", "1s.1"])
def test_the_same_in_json(http: httpx.Client, older_than: str) -> None:
    response = http.post(path(ListStuckPaymentsRequest()), json={"olderThan": older_than})
    failure = json_failure(response)
    assert failure.code == "invalid_argument"
    (detail,) = failure.details
    assert isinstance(detail, BadRequest)
    assert [each.field for each in detail.field_violations] == ["older_than"]
