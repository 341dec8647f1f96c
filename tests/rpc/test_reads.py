"""The rules of the methods that read, each over every protocol."""

import base64
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, combinations
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg
import pytest
from protobuf import Message, Oneof
from protobuf.wkt import Duration, Timestamp

from persistence.records import PAYMENT_COLUMNS
from persistence.records import Order as Record
from server.gen.google.rpc.error_details_pb import BadRequest, ErrorInfo
from server.gen.listings.v1.orders_pb import (
    FindOrderByPaymentRequest,
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    ListOrdersRequest,
    ListStuckPaymentsRequest,
    PaymentState,
    UpdateOrderPaymentRequest,
)
from tests.support.callers import READERS, Call, Failure, grpcio, json_client, path
from tests.support.orders import Orders
from tests.support.service import Service

NOBODY: Final = 2**63 - 1
REFERENCES: Final = (
    "payment_session_id",
    "payment_intent_id",
    "payment_transaction_id",
    "payment_idempotency_key",
)
OPTIONAL: Final = ("payment_provider", *REFERENCES)
LONG_AGO: Final = datetime(2001, 1, 1, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)
MICROSECOND: Final = timedelta(microseconds=1)
OPEN: Final = ("pending", "processing", "requires_action", "authorized")
OTHERS: Final = ("failed", "cancelled", "expired", "paid", "refunded", "disputed", "prepared")

_numbers = itertools.count(1_000_000, 1_000)


@pytest.fixture(scope="session", params=READERS)
def read(request: pytest.FixtureRequest, running: Service) -> Iterator[Call]:
    """Each protocol in turn, Connect's GET among them."""
    with READERS[request.param](running.base_url) as call:
        yield call


@pytest.fixture
def number() -> int:
    """A storefront, a buyer, or a part of a name, that no other test uses."""
    return next(_numbers)


def refused(read: Call, request: Message[Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        read(request)
    return caught.value


def broken_rules(read: Call, request: Message[Any]) -> list[tuple[str, str]]:
    """The fields that are named as invalid, each with the reason."""
    failure = refused(read, request)
    assert failure.code == "invalid_argument"
    (detail,) = failure.details
    assert isinstance(detail, BadRequest)
    return [(each.field, each.reason) for each in detail.field_violations]


def columns(message: Any) -> dict[str, Any]:
    """The order as its row has it."""
    found = {name: getattr(message, name) for name in Record._fields}
    absent = {name: None for name in OPTIONAL if not message.has_field(name)}
    times = {name: found[name].to_datetime() for name in ("created_at", "updated_at")}
    return found | absent | times


def state(message: PaymentState) -> dict[str, str | None]:
    return {
        name: getattr(message, name) if message.has_field(name) else None
        for name in PAYMENT_COLUMNS
    }


def time(moment: datetime) -> Timestamp:
    return Timestamp.from_datetime(moment)


def ids(response: Any) -> list[int]:
    return [each.id for each in response.orders]


def pages(read: Call, request: Any, sizes: Sequence[int]) -> Iterator[Any]:
    """All pages of a list, of these sizes in turn, over and over."""
    for size in itertools.cycle(sizes):
        request.page_size = size
        response = read(request)
        yield response
        request.page_token = response.next_page_token
        if not request.page_token:
            return


def find(field: str, value: str, **provider: str) -> FindOrderByPaymentRequest:
    reference: Any = Oneof(field, value)
    return FindOrderByPaymentRequest(reference=reference, **provider)


def test_an_order_comes_back_whole(read: Call, orders: Orders, number: int) -> None:
    payment: dict[str, Any] = {name: f"{name[:20]} {number}" for name in PAYMENT_COLUMNS}
    for order_id in (orders.add(), orders.add(status="shipped", **payment)):
        order = read(GetOrderRequest(order_id=order_id)).order

        row = orders.row(order_id)
        assert columns(order) == row


@pytest.mark.parametrize("method", [GetOrderRequest, ListOrderPaymentEventsRequest])
def test_an_order_that_is_not_there(read: Call, method: Any) -> None:
    failure = refused(read, method(order_id=NOBODY))

    assert failure == Failure("not_found", f"there is no order {NOBODY}")
    assert broken_rules(read, method(order_id=0)) == [("order_id", "INT64_GT")]


@pytest.mark.parametrize("field", REFERENCES)
def test_an_order_is_found_by_what_it_has_and_had(
    read: Call, orders: Orders, number: int, field: str
) -> None:
    came_with, has = f"old {number}", f"new {number}"
    order_id = orders.add(**{field: came_with})
    orders.change(order_id, **{field: f"between {number}"})
    orders.change(order_id, **{field: has}, payment_provider="stripe")
    row = orders.row(order_id)

    for value in (came_with, f"between {number}", has):
        request = find(field, value)
        assert columns(read(request).order) == row
        request.payment_provider = "stripe"
        assert columns(read(request).order) == row


def test_a_reference_of_no_order(read: Call, number: int) -> None:
    for field in REFERENCES:
        failure = refused(read, find(field, f"nobody's {number}"))

        assert failure == Failure("not_found", f"no order has had this {field}")
        assert broken_rules(read, find(field, "x" * 256)) == [(field, "STRING_MAX_LEN")]


def test_a_provider_tells_orders_with_the_same_reference_apart(
    read: Call, orders: Orders, number: int
) -> None:
    """Whether they have it now, or had it together with the reference."""
    value = f"pi_{number}"
    first = orders.add(payment_intent_id=value, payment_provider="stripe")
    second = orders.add(payment_intent_id=value, payment_provider="allsecure")
    orders.change(second, payment_provider="cash", payment_intent_id="another")

    for provider, order_id in (("stripe", first), ("allsecure", second), ("cash", second)):
        found = read(find("payment_intent_id", value, payment_provider=provider)).order
        assert found.id == order_id
    failure = refused(read, find("payment_intent_id", value, payment_provider="nobody"))
    assert failure.code == "not_found"


def test_a_provider_that_came_after_the_reference_and_went(
    read: Call, orders: Orders, number: int
) -> None:
    order_id = orders.add(payment_session_id=f"cs_{number}")
    orders.change(order_id, payment_provider="stripe")
    orders.change(order_id, payment_provider="cash")

    found = read(find("payment_session_id", f"cs_{number}", payment_provider="stripe")).order

    assert found.id == order_id


def test_a_reference_of_several_orders_finds_none(read: Call, orders: Orders, number: int) -> None:
    value = f"cs_{number}"
    for _ in range(3):
        order_id = orders.add(payment_session_id=value, payment_provider="stripe")
    orders.change(order_id, payment_session_id="another")

    for provider in ({}, {"payment_provider": "stripe"}):
        failure = refused(read, find("payment_session_id", value, **provider))

        assert failure.code == "failed_precondition"
        assert failure.details == (
            ErrorInfo(reason="PAYMENT_REFERENCE_AMBIGUOUS", domain="listings.v1"),
        )
        assert value not in failure.message


def test_an_order_that_had_a_reference_twice_is_one_order(
    read: Call, orders: Orders, number: int
) -> None:
    order_id = orders.add(payment_session_id=f"cs_{number}")
    orders.change(order_id, payment_session_id=None)
    orders.change(order_id, payment_session_id=f"cs_{number}")

    assert read(find("payment_session_id", f"cs_{number}")).order.id == order_id


def test_a_reference_must_be_given(read: Call) -> None:
    for request in (FindOrderByPaymentRequest(), FindOrderByPaymentRequest(payment_provider="x")):
        assert broken_rules(read, request) == [("reference", "REQUIRED")]


def test_lists_with_every_set_of_filters(read: Call, orders: Orders, number: int) -> None:
    """One storefront's orders, against the same filters in Python; newest first."""
    for each in range(24):
        orders.add(
            storefront_id=number,
            buyer_id=number + each % 2,
            payment_status=("paid", "failed", "pending")[each % 3],
            payment_provider=(None, "stripe", "cash", "stripe")[each % 4],
            created_at=LONG_AGO + each // 5 * SECOND,  # five at a time
        )
    rows = list_by_hand(orders, number)
    assert len(rows) == 24
    filters: dict[str, Any] = {
        "payment_status": "paid",
        "payment_provider": "stripe",
        "buyer_id": number,
        "created_from": LONG_AGO + SECOND,
        "created_before": LONG_AGO + 4 * SECOND,
    }
    every = (combinations(filters, size) for size in range(len(filters) + 1))
    for names in chain.from_iterable(every):
        given = {name: filters[name] for name in names}
        times: Any = {name: time(given.pop(name)) for name in names if name.startswith("created")}

        response = read(ListOrdersRequest(storefront_id=number, **given, **times))

        assert list(map(columns, response.orders)) == [
            row
            for row in rows
            if given.items() <= row.items()
            and ("created_from" not in names or row["created_at"] >= filters["created_from"])
            and ("created_before" not in names or row["created_at"] < filters["created_before"])
        ]
        assert response.next_page_token == ""


def list_by_hand(orders: Orders, storefront_id: int) -> list[dict[str, Any]]:
    with psycopg.connect(orders.url) as connection:
        found = connection.execute(
            "SELECT id FROM orders WHERE storefront_id = %s", (storefront_id,)
        ).fetchall()
    rows = [orders.row(order_id) for (order_id,) in found]
    return sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=True)


def test_a_list_with_one_filter(read: Call, orders: Orders, number: int) -> None:
    filters: dict[str, Any] = {
        "buyer_id": number,
        "payment_status": f"s{number}",
        "payment_provider": f"p{number}",
    }
    for name, value in filters.items():
        added = [orders.add(**{name: value}) for _ in range(3)]
        orders.add()

        assert ids(read(ListOrdersRequest(**{name: value}))) == added[::-1]


def test_a_list_without_filters(read: Call, orders: Orders) -> None:
    late = datetime(2200, 1, 1, tzinfo=UTC) + next(_numbers) * SECOND
    added = [orders.add(created_at=late) for _ in range(3)]

    assert ids(read(ListOrdersRequest(page_size=3))) == added[::-1]


def test_an_empty_list(read: Call, number: int) -> None:
    response = read(ListOrdersRequest(storefront_id=number))

    assert (list(response.orders), response.next_page_token) == ([], "")


def test_the_time_range_has_its_beginning_and_not_its_end(
    read: Call, orders: Orders, number: int
) -> None:
    moments = [LONG_AGO - MICROSECOND, LONG_AGO, LONG_AGO + MICROSECOND]
    before, at, after = (orders.add(storefront_id=number, created_at=each) for each in moments)

    def listed(**times: datetime) -> list[int]:
        given: dict[str, Any] = {name: time(each) for name, each in times.items()}
        return ids(read(ListOrdersRequest(storefront_id=number, **given)))

    assert listed(created_from=LONG_AGO) == [after, at]
    assert listed(created_before=LONG_AGO) == [before]
    assert listed(created_from=LONG_AGO, created_before=LONG_AGO + MICROSECOND) == [at]
    assert listed(
        created_from=datetime.min.replace(tzinfo=UTC),
        created_before=datetime.max.replace(tzinfo=UTC),
    ) == [after, at, before]


def test_a_time_range_that_begins_or_ends_between_microseconds(
    read: Call, orders: Orders, number: int
) -> None:
    order_id = orders.add(storefront_id=number, created_at=LONG_AGO)
    just_after = Timestamp(seconds=time(LONG_AGO).seconds, nanos=1)

    before = read(ListOrdersRequest(storefront_id=number, created_before=just_after))
    since = read(ListOrdersRequest(storefront_id=number, created_from=just_after))

    assert (ids(before), ids(since)) == ([order_id], [])


def test_the_last_time_that_there_is(read: Call, orders: Orders, number: int) -> None:
    order_id = orders.add(storefront_id=number, created_at=LONG_AGO)
    last = Timestamp(seconds=253_402_300_799, nanos=999_999_999)

    before = read(ListOrdersRequest(storefront_id=number, created_before=last))
    since = read(ListOrdersRequest(storefront_id=number, created_from=last))

    assert (ids(before), ids(since)) == ([order_id], [])


@pytest.mark.parametrize("length", [timedelta(0), -MICROSECOND])
def test_a_time_range_must_not_be_empty(read: Call, length: timedelta) -> None:
    request = ListOrdersRequest(created_from=time(LONG_AGO), created_before=time(LONG_AGO + length))

    assert broken_rules(read, request) == [("", "TIME_RANGE_BEGINS_BEFORE_IT_ENDS")]


def test_pages_of_any_size_are_the_list(read: Call, orders: Orders, number: int) -> None:
    added = [
        orders.add(storefront_id=number, created_at=LONG_AGO + each // 3 * SECOND)
        for each in range(8)
    ]
    for sizes in ([1], [2], [3], [7], [8], [9], [1, 3], [0], [5, 2**31 - 1]):
        found = list(pages(read, ListOrdersRequest(storefront_id=number), sizes))

        assert [each for page in found for each in ids(page)] == added[::-1]
        assert all(len(ids(page)) == size for page, size in zip(found[:-1], itertools.cycle(sizes)))
        assert ids(found[-1])


def test_orders_that_come_between_pages(read: Call, orders: Orders, number: int) -> None:
    """A newer one is not repeated and shifts nothing; one of a later page is there."""

    def add(second: int) -> int:
        return orders.add(storefront_id=number, created_at=LONG_AGO + second * SECOND)

    oldest, older, newer, newest = (add(second) for second in (0, 2, 4, 6))
    walk = pages(read, ListOrdersRequest(storefront_id=number), [2])
    assert ids(next(walk)) == [newest, newer]
    add(7)
    add(5)
    late = add(1)

    assert [each for page in walk for each in ids(page)] == [older, late, oldest]


def test_the_size_of_a_page(running: Service, orders: Orders, number: int) -> None:
    """Over one protocol only: a thousand orders are many to add and to send."""
    with psycopg.connect(orders.url) as connection:
        connection.execute(
            "INSERT INTO orders (order_number, buyer_id, storefront_id, currency, subtotal_amount,"
            " total_amount) SELECT 'S-' || n, 1, %s, 'EUR', 1, 1 FROM generate_series(1, 1005) n",
            (number,),
        )
    with grpcio(running.base_url) as read:
        sizes = [
            len(ids(read(ListOrdersRequest(storefront_id=number, page_size=size))))
            for size in (0, 1, 999, 1_000, 1_001, 2**31 - 1)
        ]
        walk = pages(read, ListOrdersRequest(storefront_id=number), [2_000])
        lengths = [len(ids(page)) for page in walk]

    assert sizes == [50, 1, 999, 1_000, 1_000, 1_000]
    assert lengths == [1_000, 5]


def lists() -> list[Any]:
    """One request for each method that has pages."""
    return [
        ListOrdersRequest(),
        ListStuckPaymentsRequest(older_than=Duration(seconds=1)),
        ListOrderPaymentEventsRequest(order_id=1),
    ]


def test_a_page_is_not_smaller_than_nothing(read: Call) -> None:
    for size in (-1, -(2**31)):
        for request in lists():
            request.page_size = size
            assert broken_rules(read, request) == [("page_size", "INT32_GTE")]


def test_a_token_that_is_none(read: Call) -> None:
    zeros = base64.b64encode(bytes(24)).decode()
    for token in ("x", "====", "ü", "\0", "a b", zeros, "A" * 1_000):
        for request in lists():
            request.page_token = token
            assert broken_rules(read, request) == [("page_token", "PAGE_TOKEN_INVALID")]


def test_a_token_that_is_too_long(read: Call) -> None:
    for request in lists():
        request.page_token = "A" * 1_001
        assert broken_rules(read, request) == [("page_token", "STRING_MAX_LEN")]


def test_a_token_of_another_list(read: Call, orders: Orders, number: int) -> None:
    for _ in range(2):
        order_id = orders.add(
            storefront_id=number,
            payment_provider=f"p{number}",
            created_at=LONG_AGO,
            updated_at=LONG_AGO,
        )
    orders.change(order_id, payment_session_id="cs")
    hour = Duration(seconds=3_600)
    provider = f"p{number}"
    same: list[Any] = [
        ListOrdersRequest(storefront_id=number, page_size=1),
        ListOrdersRequest(storefront_id=number, payment_provider=provider, page_size=1),
        ListStuckPaymentsRequest(older_than=hour, payment_provider=provider, page_size=1),
        ListOrderPaymentEventsRequest(order_id=order_id, page_size=1),
    ]
    tokens = [read(each).next_page_token for each in same]
    assert all(tokens)
    others: list[Any] = [
        *same,
        ListOrdersRequest(),
        ListOrdersRequest(storefront_id=number, created_from=time(LONG_AGO)),
        ListStuckPaymentsRequest(older_than=Duration(seconds=3_601), payment_provider=provider),
        ListStuckPaymentsRequest(older_than=hour),
        ListOrderPaymentEventsRequest(order_id=order_id - 1),
    ]

    for (place, token), (other_place, other) in itertools.product(
        enumerate(tokens), enumerate(others)
    ):
        other.page_token = token
        if place == other_place:
            assert read(other).next_page_token == ""
        else:
            assert broken_rules(read, other) == [("page_token", "PAGE_TOKEN_INVALID")]


def test_stuck_payments(read: Call, orders: Orders, number: int) -> None:
    """Open, with a provider, and unchanged: oldest first, and by id where that is equal."""
    then = {"created_at": LONG_AGO, "updated_at": LONG_AGO + SECOND}
    provider: Any = {"payment_provider": f"p{number}"}
    same_age = [orders.add(payment_status=each, **provider, **then) for each in OPEN]
    oldest = orders.add(**provider, created_at=LONG_AGO - SECOND, updated_at=LONG_AGO)
    for status in OTHERS:
        orders.add(payment_status=status, **provider, **then)
    orders.add(**provider, created_at=LONG_AGO)  # and changed now
    without = orders.add(payment_session_id="cs", **then)
    other = orders.add(payment_provider=f"other {number}", **then)
    day = Duration(seconds=86_400)

    response = read(ListStuckPaymentsRequest(older_than=day, **provider))

    assert ids(response) == [oldest, *same_age]
    assert list(map(columns, response.orders)) == [orders.row(each) for each in ids(response)]
    everything = pages(read, ListStuckPaymentsRequest(older_than=day), [1_000])
    found = [each for page in everything for each in ids(page)]
    assert [each for each in found if each >= same_age[0]] == [oldest, *same_age, other]
    assert without not in found


def test_how_long_a_payment_has_been_stuck(read: Call, orders: Orders, number: int) -> None:
    now = datetime.now(UTC)
    provider: Any = {"payment_provider": f"p{number}"}
    created = {"created_at": now - timedelta(days=9)}
    fresh = orders.add(**created, **provider, updated_at=now)
    hour = orders.add(**created, **provider, updated_at=now - timedelta(hours=1))

    def stuck(**older_than: int) -> list[int]:
        return ids(read(ListStuckPaymentsRequest(older_than=Duration(**older_than), **provider)))

    assert stuck() == [fresh, hour]
    assert stuck(seconds=3_000) == [hour]
    assert stuck(seconds=3_600 * 2) == []


def test_pages_of_stuck_payments(read: Call, orders: Orders, number: int) -> None:
    provider: Any = {"payment_provider": f"p{number}"}
    added = [
        orders.add(**provider, created_at=LONG_AGO + each // 3 * SECOND, updated_at=LONG_AGO)
        for each in range(7)
    ]
    for sizes in ([1], [3], [7], [2, 4], [0]):
        request = ListStuckPaymentsRequest(older_than=Duration(seconds=60), **provider)
        found = [each for page in pages(read, request, sizes) for each in ids(page)]
        assert found == added


@pytest.mark.parametrize(
    ("older_than", "reason"),
    [
        (None, "REQUIRED"),
        (Duration(seconds=-1), "DURATION_GTE_LTE"),
        (Duration(nanos=-1), "DURATION_GTE_LTE"),
        (Duration(seconds=315_360_000, nanos=1), "DURATION_GTE_LTE"),
    ],
)
def test_stuck_for_a_time_that_there_is_not(
    read: Call, older_than: Duration | None, reason: str
) -> None:
    request = ListStuckPaymentsRequest(older_than=older_than)

    assert broken_rules(read, request) == [("older_than", reason)]


def test_what_happened_to_a_payment(
    read: Call, running: Service, orders: Orders, number: int
) -> None:
    """By a request, then by hand."""
    order_id = orders.add()
    payment: dict[str, Any] = {
        "payment_provider": "stripe",
        "payment_session_id": f"cs_{number}",
        "payment_idempotency_key": f"evt_{number}",
        "payment_status": "processing",
    }
    update = UpdateOrderPaymentRequest(order_id=order_id, **payment)
    with json_client(running.base_url) as client:
        client.post(
            path(update), content=update.to_json(), headers={"x-request-id": f"request-{number}"}
        ).raise_for_status()
    after_request = orders.row(order_id)
    orders.change(order_id, payment_status="paid", payment_session_id=None)

    response = read(ListOrderPaymentEventsRequest(order_id=order_id))

    first, second = response.events
    assert response.next_page_token == ""
    unpaid: dict[str, str | None] = dict.fromkeys(PAYMENT_COLUMNS)
    unpaid["payment_status"] = "pending"
    assert state(first.before) == unpaid
    assert state(first.after) == state(second.before) == unpaid | payment
    assert state(second.after) == unpaid | payment | {
        "payment_status": "paid",
        "payment_session_id": None,
    }
    assert first.payment_idempotency_key == f"evt_{number}"
    assert first.request_id == f"request-{number}"
    assert not any(
        each.has_field("caller") or each.order_id != order_id for each in response.events
    )
    assert not second.has_field("payment_idempotency_key")
    assert not second.has_field("request_id")
    role = urlsplit(running.database_url).username
    assert first.database_role == second.database_role == role
    assert first.id < second.id
    assert after_request["created_at"] < first.created_at.to_datetime()
    assert first.created_at.to_datetime() < second.created_at.to_datetime()


def test_an_order_that_came_with_a_payment(read: Call, orders: Orders) -> None:
    order_id = orders.add(payment_status="paid")

    (event,) = read(ListOrderPaymentEventsRequest(order_id=order_id)).events

    assert set(state(event.before).values()) == {None}
    assert event.after.payment_status == "paid"


def test_an_order_to_which_nothing_happened(read: Call, orders: Orders) -> None:
    response = read(ListOrderPaymentEventsRequest(order_id=orders.add()))

    assert (list(response.events), response.next_page_token) == ([], "")


def test_history_outlives_its_order(read: Call, orders: Orders) -> None:
    order_id = orders.add(payment_status="paid")
    with psycopg.connect(orders.url) as connection:
        connection.execute("DELETE FROM orders WHERE id = %s", (order_id,))

    assert len(read(ListOrderPaymentEventsRequest(order_id=order_id)).events) == 1
    assert refused(read, GetOrderRequest(order_id=order_id)).code == "not_found"


def test_pages_of_events(read: Call, orders: Orders) -> None:
    order_id, other_id = orders.add(), orders.add()
    for each in range(7):
        orders.change(order_id, payment_status=f"{each}")
        orders.change(other_id, payment_status=f"{each}")
    for sizes in ([1], [3], [7], [2, 4], [0]):
        walk = pages(read, ListOrderPaymentEventsRequest(order_id=order_id), sizes)
        found = [each.after.payment_status for page in walk for each in page.events]
        assert found == list("0123456")


@pytest.mark.parametrize("id_", ["client-1", "!" * 128])
def test_the_request_id_comes_back(running: Service, orders: Orders, id_: str) -> None:
    """With answers and with errors, by POST and by GET."""
    requests = [
        GetOrderRequest(order_id=orders.add()),
        GetOrderRequest(order_id=NOBODY),
        GetOrderRequest(),
        FindOrderByPaymentRequest(),
        *lists(),
    ]
    headers = {"x-request-id": id_}
    with json_client(running.base_url) as client:
        for request in requests:
            url, content = path(request), request.to_json()
            query = {"connect": "v1", "encoding": "json", "message": content}
            posted = client.post(url, content=content, headers=headers)
            got = client.get(url, params=query, headers=headers)

            assert got.status_code == posted.status_code
            assert got.json() == posted.json()
            assert got.headers["x-request-id"] == posted.headers["x-request-id"] == id_


def test_a_request_without_an_id_is_given_one(running: Service) -> None:
    with json_client(running.base_url) as client:
        answers = [
            client.post(path(request), content=request.to_json())
            for request in (GetOrderRequest(order_id=NOBODY), *lists())
        ]

    given = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(given)) == len(answers)
    assert all(given)
