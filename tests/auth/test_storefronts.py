"""Tenant scope: a token limited to storefronts does not see the orders of others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from protobuf.wkt import Duration

from persistence.models import PAYMENT_COLUMNS
from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrderPaymentEventsRequest,
    ListOrderPaymentsRequest,
    ListOrdersRequest,
    ListRefusedPaymentEventsRequest,
    ListStuckPaymentsRequest,
    Order,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
    WatchOrderPaymentsResponse,
)
from tests.support.callers import CALLERS, READERS, Call, Failure
from tests.support.orders import Orders
from tests.support.reading import MISSING_ORDER_ID, find, ids, pages, refused
from tests.support.service import Service
from tests.support.tokens import READ, WRITE, Issuer, bearer
from tests.support.updates import refused_events
from tests.support.watchers import WATCHERS, Watch


@pytest.fixture(scope="session")
def orders(guarded: Service) -> Orders:
    """The orders behind the service that these tests call."""
    return Orders(guarded.database_url)


@contextmanager
def reading(protocol: str, guarded: Service, issuer: Issuer, *storefronts: int) -> Iterator[Call]:
    token = issuer.token(READ, storefronts=list(storefronts))
    with READERS[protocol](guarded.base_url, **bearer(token)) as read:
        yield read


@pytest.fixture(params=READERS)
def read(
    request: pytest.FixtureRequest, guarded: Service, issuer: Issuer, number: int
) -> Iterator[Call]:
    """A caller with the storefronts ``number`` and ``number + 1``."""
    with reading(request.param, guarded, issuer, number, number + 1) as read:
        yield read


PAYMENT: Final = {"payment_provider": "stripe", "payment_status": "processing"}


def test_one_order(read: Call, orders: Orders, number: int) -> None:
    ours = orders.add(storefront_id=number)
    theirs = orders.add(storefront_id=number + 2)
    for order_id in (ours, theirs):
        orders.change(order_id, payment_intent_id=f"pi_{order_id}")

    assert read(GetOrderRequest(order_id=ours)).order.id == ours
    assert read(find("payment_intent_id", f"pi_{ours}")).order.id == ours
    assert len(read(ListOrderPaymentEventsRequest(order_id=ours)).events) == 1
    assert len(read(ListOrderPaymentsRequest(order_id=ours)).payments) == 1
    for request in (GetOrderRequest, ListOrderPaymentEventsRequest, ListOrderPaymentsRequest):
        # The same error as for an order that does not exist.
        assert refused(read, request(order_id=theirs)) == Failure(
            "not_found", f"there is no order {theirs}"
        )
        assert refused(read, request(order_id=MISSING_ORDER_ID)).code == "not_found"
    assert refused(read, find("payment_intent_id", f"pi_{theirs}")).code == "not_found"


def test_a_payment_reference_shared_with_another_storefront(
    read: Call, orders: Orders, number: int
) -> None:
    for storefront_id in (number, number + 2):
        order_id = orders.add(storefront_id=storefront_id)
        orders.change(order_id, payment_session_id=f"cs_{number}")
    found = read(find("payment_session_id", f"cs_{number}")).order
    assert found.storefront_id == number


def test_history_of_another_storefront(read: Call, orders: Orders, number: int) -> None:
    """An event belongs to the storefront that its order had at the time."""
    order_id = orders.add(storefront_id=number + 2)
    orders.change(order_id, payment_status="processing")
    orders.change(order_id, storefront_id=number)
    orders.change(order_id, payment_status="paid")
    (event,) = read(ListOrderPaymentEventsRequest(order_id=order_id)).events
    assert event.after.payment_status == "paid"


def test_lists(read: Call, orders: Orders, number: int) -> None:
    """Only orders in scope: page by page, in order, with every filter."""
    made = [
        orders.add(
            storefront_id=number + n % 3,
            buyer_id=number + n % 2,
            created_at=f"2024-01-{1 + n // 2:02} 10:00+00",
            payment_status_since="2024-02-01 10:00+00",
            **PAYMENT,
        )
        for n in range(18)
    ]
    ours = [order_id for n, order_id in enumerate(made) if n % 3 != 2]

    assert listed(read, ListOrdersRequest(), [1, 3, 4]) == sorted(ours, reverse=True)
    of_a_buyer = [order_id for n, order_id in enumerate(made) if n % 3 != 2 and n % 2]
    wanted = ListOrdersRequest(buyer_id=number + 1, payment_status="processing")
    assert ids(read(wanted)) == sorted(of_a_buyer, reverse=True)
    wanted = ListOrdersRequest(
        buyer_id=number + 1, payment_states=[Order.PaymentState.PROCESSING, Order.PaymentState.PAID]
    )
    assert listed(read, wanted, [2]) == sorted(of_a_buyer, reverse=True)
    wanted = ListOrdersRequest(payment_statuses=["paid", "processing"])
    assert listed(read, wanted, [5]) == sorted(ours, reverse=True)
    assert ids(read(ListOrdersRequest(order_number=orders.row(made[2])["order_number"]))) == []
    assert ids(read(ListOrdersRequest(order_number=orders.row(made[0])["order_number"]))) == [
        made[0]
    ]
    of_a_storefront = [order_id for n, order_id in enumerate(made) if n % 3 == 1]
    wanted = ListOrdersRequest(storefront_id=number + 1)
    assert ids(read(wanted)) == sorted(of_a_storefront, reverse=True)

    stuck = ListStuckPaymentsRequest(older_than=Duration(seconds=1))
    assert listed(read, stuck, [5, 2]) == sorted(ours)
    stuck = ListStuckPaymentsRequest(older_than=Duration(seconds=1), payment_provider="stripe")
    assert listed(read, stuck, [5, 2]) == sorted(ours)


def test_refused_events(
    read: Call, guarded: Service, issuer: Issuer, orders: Orders, number: int
) -> None:
    """Those for orders in scope, page by page; and by them, no order out of scope is found."""
    made = [
        orders.add(storefront_id=number + n % 3, payment_status="paid", payment_state=9)
        for n in range(9)
    ]
    intent = f"pi_{number}"
    with CALLERS["grpcio"](guarded.base_url, **bearer(issuer.token(WRITE))) as write:
        for order_id in made:
            pending = UpdateOrderPaymentRequest(
                order_id=order_id, payment_status="pending", payment_intent_id=intent
            )
            assert refused(write, pending).code == "failed_precondition"
        key = f"evt_{number}"
        write(UpdateOrderPaymentRequest(order_id=made[0], payment_idempotency_key=key))
        missing = UpdateOrderPaymentRequest(order_id=MISSING_ORDER_ID, payment_idempotency_key=key)
        assert refused(write, missing).code == "already_exists"
    ours = [order_id for n, order_id in enumerate(made) if n % 3 != 2]

    for wanted, expected in (
        (ListRefusedPaymentEventsRequest(), ours),
        (ListRefusedPaymentEventsRequest(reason="PAYMENT_STATUS_REFUSED"), ours),
        (ListRefusedPaymentEventsRequest(storefront_id=number + 1), made[1::3]),
        (ListRefusedPaymentEventsRequest(order_id=made[2]), []),
        (ListRefusedPaymentEventsRequest(order_id=MISSING_ORDER_ID), []),
    ):
        walk = pages(read, wanted, [1, 4])
        assert [each.order_id for page in walk for each in page.events] == expected[::-1]
    for order_id, count in ((made[0], 1), (made[2], None), (MISSING_ORDER_ID, None)):
        history = ListOrderPaymentEventsRequest(order_id=order_id, include_refused=True)
        if count is None:
            assert refused(read, history).code == "not_found"
        else:
            assert len(read(history).refused) == count
    (info,) = refused(read, find("payment_intent_id", intent)).details
    assert isinstance(info, ErrorInfo)
    assert info.metadata["order_ids"] == ",".join(map(str, ours))
    orders.change(made[2], storefront_id=number)  # what was before is not in scope
    page = read(ListOrderPaymentEventsRequest(order_id=made[2], include_refused=True))
    assert not (page.events or page.refused)


@pytest.mark.parametrize("method", [ListOrdersRequest, ListRefusedPaymentEventsRequest])
def test_a_filter_for_a_storefront_out_of_scope(read: Call, number: int, method: Any) -> None:
    failure = refused(read, method(storefront_id=number + 2))
    assert failure.code == "permission_denied"
    assert failure.details == (
        ErrorInfo(
            reason="PERMISSION_MISSING",
            domain="listings.v1",
            metadata={"storefront_id": str(number + 2)},
        ),
    )


def test_an_empty_scope(guarded: Service, issuer: Issuer, orders: Orders) -> None:
    order_id = orders.add()
    with reading("connect-binary", guarded, issuer) as read:
        assert ids(read(ListOrdersRequest())) == []
        assert refused(read, GetOrderRequest(order_id=order_id)).code == "not_found"


@pytest.mark.parametrize("protocol", WATCHERS)
def test_watching(
    guarded: Service, issuer: Issuer, orders: Orders, number: int, protocol: str
) -> None:
    ours, theirs = (orders.add(storefront_id=storefront) for storefront in (number, number + 1))
    token = issuer.token(READ, storefronts=[number])
    with WATCHERS[protocol](guarded.base_url, **bearer(token)) as watch:
        both = WatchOrderPaymentsRequest(order_ids=[ours, theirs])
        with watch(both) as stream:
            both.last_event_id = next(stream).event_id
            change(orders, theirs, ours)
            assert order_of(next(stream)) == ours
        change(orders, theirs, ours)
        with watch(both) as stream:  # resumed: the missed events in scope
            next(stream)
            assert [order_of(next(stream)) for _ in range(2)] == [ours, ours]
        with watch(WatchOrderPaymentsRequest(storefront_id=number)) as stream:
            next(stream)
            change(orders, theirs, ours)
            assert order_of(next(stream)) == ours
        not_ours = WatchOrderPaymentsRequest(storefront_id=number + 1)
        assert refusal(watch, not_ours).code == "permission_denied"


def test_watching_refused_events(
    guarded: Service, issuer: Issuer, orders: Orders, number: int
) -> None:
    """Only those for orders in scope; and none for an order that there is not."""
    ours, theirs = (
        orders.add(storefront_id=each, payment_status="paid", payment_state=9)
        for each in (number, number + 1)
    )
    orders.add(payment_idempotency_key=f"evt_{number}")
    free, limited = (
        bearer(issuer.token(READ, WRITE, storefronts=storefronts))
        for storefronts in (None, [number])
    )
    connect, watched = WATCHERS["grpcio"], [theirs, MISSING_ORDER_ID - number, ours]
    wanted = WatchOrderPaymentsRequest(order_ids=watched, include_refused=True)
    with (
        CALLERS["grpcio"](guarded.base_url, **free) as write,
        connect(guarded.base_url, **free) as one,
        connect(guarded.base_url, **limited) as another,
        one(wanted) as every,
        another(wanted) as some,
    ):
        next(every)
        wanted.last_event_id = next(some).event_id
        for order_id in watched:
            request = UpdateOrderPaymentRequest(
                order_id=order_id,
                payment_status="pending",
                payment_idempotency_key=f"evt_{number}",
            )
            assert refused(write, request).code == "already_exists"
        assert [refused_for(next(every)) for _ in watched] == watched
        assert refused_for(next(some)) == ours
        with another(wanted) as resumed:
            next(resumed)
            assert refused_for(next(resumed)) == ours


def test_watchers_of_different_scopes_are_separate(
    guarded: Service, issuer: Issuer, orders: Orders, number: int
) -> None:
    ours, theirs = (orders.add(storefront_id=storefront) for storefront in (number, number + 1))
    both = WatchOrderPaymentsRequest(order_ids=[ours, theirs])
    limited = bearer(issuer.token(READ, storefronts=[number]))
    free = bearer(issuer.token(READ))
    connect = WATCHERS["connect-binary"]
    with (
        connect(guarded.base_url, **limited) as one,
        connect(guarded.base_url, **free) as another,
        one(both) as some,
        another(both) as every,
    ):
        next(some)
        next(every)
        change(orders, theirs, ours)
        assert {order_of(next(every)) for _ in range(2)} == {ours, theirs}
        assert order_of(next(some)) == ours


class TestWriting:
    """The scope applies to writes, too."""

    @pytest.fixture(params=CALLERS)
    def write(
        self, request: pytest.FixtureRequest, guarded: Service, issuer: Issuer, number: int
    ) -> Iterator[Call]:
        token = issuer.token(WRITE, storefronts=[number], sub="pay")
        with CALLERS[request.param](guarded.base_url, **bearer(token)) as call:
            yield call

    def test_every_set_of_fields(self, write: Call, orders: Orders, number: int) -> None:
        ours = orders.add(storefront_id=number)
        theirs = orders.add(storefront_id=number + 1)
        before = orders.row(theirs)
        for fields in (PAYMENT_COLUMNS, *((name,) for name in PAYMENT_COLUMNS)):
            values: dict[str, Any] = {
                name: f"{name[:20]} {len(fields)} {number}" for name in fields
            }
            assert write(UpdateOrderPaymentRequest(order_id=ours, **values)).order.id == ours
            failure = refused(write, UpdateOrderPaymentRequest(order_id=theirs, **values))
            assert failure == Failure("not_found", f"there is no order {theirs}")
        assert orders.row(theirs) == before

    def test_keys_and_statuses_of_others_are_not_disclosed(
        self, write: Call, orders: Orders, number: int
    ) -> None:
        theirs = orders.add(storefront_id=number + 1)
        key = f"evt_{number}"
        orders.change(theirs, payment_idempotency_key=key, payment_status="paid")
        for status in ("paid", "pending"):
            request = UpdateOrderPaymentRequest(
                order_id=theirs, payment_idempotency_key=key, payment_status=status
            )
            assert refused(write, request).code == "not_found"

    def test_a_key_of_another_storefront_is_refused_without_its_order(
        self, write: Call, orders: Orders, number: int
    ) -> None:
        ours = orders.add(storefront_id=number)
        theirs = orders.add(storefront_id=number + 1)
        orders.change(theirs, payment_idempotency_key=f"evt_{theirs}")
        request = UpdateOrderPaymentRequest(
            order_id=ours, payment_idempotency_key=f"evt_{theirs}", payment_status="paid"
        )
        failure = refused(write, request)
        assert failure.code == "already_exists"
        assert failure.details == (
            ErrorInfo(
                reason="IDEMPOTENCY_KEY_REUSED",
                domain="listings.v1",
                metadata={"order_id": str(ours)},
            ),
        )
        assert f"{theirs}" not in failure.message
        (event,) = refused_events(orders.url, ours)
        assert (event["storefront_id"], event["caller"]) == (number, "pay")
        assert event["payment_idempotency_key"] == f"evt_{theirs}"

    def test_a_refusal_of_an_order_of_another_storefront_is_not_on_record(
        self, write: Call, orders: Orders, number: int
    ) -> None:
        """Otherwise a caller could fill the record of an order that does not exist for it."""
        theirs = orders.add(storefront_id=number + 1, payment_status="refunded")
        used = orders.add(storefront_id=number)
        orders.change(used, payment_idempotency_key=f"evt_{used}")
        for key in (f"evt_{used}", "unknown"):
            request = UpdateOrderPaymentRequest(
                order_id=theirs, payment_idempotency_key=key, payment_status="pending"
            )
            assert refused(write, request).code == "not_found"
        assert refused_events(orders.url, theirs) == []

    def test_replays_and_refusals_within_the_limit(
        self, write: Call, orders: Orders, number: int
    ) -> None:
        ours = orders.add(storefront_id=number)
        request = UpdateOrderPaymentRequest(
            order_id=ours, payment_idempotency_key=f"evt_{number}", payment_status="paid"
        )
        assert not write(request).replayed
        assert write(request).replayed
        late = UpdateOrderPaymentRequest(order_id=ours, payment_status="pending")
        assert refused(write, late).code == "failed_precondition"

    def test_the_history_records_the_subject(
        self, write: Call, guarded: Service, issuer: Issuer, orders: Orders, number: int
    ) -> None:
        ours = orders.add(storefront_id=number)
        write(UpdateOrderPaymentRequest(order_id=ours, payment_status="paid"))
        with reading("grpcio", guarded, issuer, number) as read:
            (event,) = read(ListOrderPaymentEventsRequest(order_id=ours)).events
        assert event.caller == "pay"
        (entry,) = guarded.logged(event="rpc", request_id=event.request_id)
        assert entry["subject"] == "pay"


def listed(read: Call, request: Any, sizes: list[int]) -> list[int]:
    return [order_id for page in pages(read, request, sizes) for order_id in ids(page)]


def order_of(message: WatchOrderPaymentsResponse) -> int:
    assert message.event is not None
    return message.event.order_id


def change(orders: Orders, *order_ids: int) -> None:
    for order_id in order_ids:
        status = orders.row(order_id)["payment_status"]
        new = "processing" if status == "pending" else "pending"
        orders.change(order_id, payment_status=new)


def refused_for(message: WatchOrderPaymentsResponse) -> int:
    assert message.refused is not None
    return message.refused.order_id


def refusal(watch: Watch, request: WatchOrderPaymentsRequest) -> Failure:
    with watch(request) as stream, pytest.raises(Failure) as caught:
        next(stream)
    return caught.value
