"""The limit of watches for each caller."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.gen.google.rpc.error_details_pb import ErrorInfo
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import service, watchers
from tests.support.callers import READERS, Failure
from tests.support.orders import Orders
from tests.support.service import Service
from tests.support.tokens import READ, Issuer, bearer
from tests.support.waiting import eventually
from tests.support.watchers import WATCHERS, Watch

LIMIT = 3
WANTED = WatchOrderPaymentsRequest(order_ids=[1])


def rejected(watch: Watch) -> Failure:
    with watch(WANTED) as stream, pytest.raises(Failure) as caught:
        next(stream)
    return caught.value


def logged(running: Service) -> list[str]:
    logger = "server.rpc.interceptors.watch_limit"
    return [entry["event"] for entry in running.logged(level="warning", logger=logger)]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("limited") / "log"
    with service.on_own_database(log, max_watches_per_caller=str(LIMIT)) as running:
        yield running


@pytest.mark.parametrize("protocol", WATCHERS)
def test_an_address_has_a_limit(limited: Service, protocol: str) -> None:
    """Whichever connections its watches come by. Other calls do not count."""
    eventually(lambda: limited.metric("listings_watchers") == 0)
    before = len(logged(limited))
    with ExitStack() as connections:
        begun = []  # a stream that is not referred to ends
        with ExitStack() as streams:
            for _ in range(LIMIT):
                watch = connections.enter_context(WATCHERS[protocol](limited.base_url))
                begun.append(streams.enter_context(watch(WANTED)))
                next(begun[-1])
            for _ in range(2):
                failure = rejected(watch)
                assert failure.code == "resource_exhausted"
                assert failure.message.startswith(f"the caller has {LIMIT} watches here")
                (info,) = failure.details
                assert isinstance(info, ErrorInfo)
                assert (info.reason, info.domain) == ("TOO_MANY_WATCHES", "listings.v1")
                assert info.metadata == {"limit": str(LIMIT)}
            order_id = Orders(limited.database_url).add()
            with READERS["grpcio"](limited.base_url) as call:
                call(UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"))
                assert call(GetOrderRequest(order_id=order_id)).order.id == order_id
        eventually(lambda: limited.metric("listings_watchers") == 0)
        with watch(WANTED) as stream:
            next(stream)
    setting = f"LISTINGS_MAX_WATCHES_PER_CALLER is {LIMIT}"
    assert logged(limited)[before:] == [f"watches of 127.0.0.1 rejected: {setting}"]


def test_each_subject_has_its_own_limit(tmp_path: Path) -> None:
    """Whichever tokens it has."""
    issuer = Issuer(tmp_path / "jwks.json")
    settings = issuer.settings() | {"max_watches_per_caller": "1"}
    with (
        service.on_own_database(tmp_path / "log", **settings) as running,
        ExitStack() as stack,
    ):

        def watcher(subject: str, number: int) -> Watch:
            headers = bearer(issuer.token(READ, sub=subject, jti=f"{number}"))
            return stack.enter_context(watchers.grpcio(running.base_url, **headers))

        begun = []
        for subject in ("dashboard", "shop"):
            begun.append(stack.enter_context(watcher(subject, 1)(WANTED)))
            next(begun[-1])
        for subject in ("dashboard", "shop"):
            assert rejected(watcher(subject, 2)).code == "resource_exhausted"
        setting = "LISTINGS_MAX_WATCHES_PER_CALLER is 1"
        found = [f"watches of {each} rejected: {setting}" for each in ("dashboard", "shop")]
        assert logged(running) == found


def test_0_is_no_limit(tmp_path: Path) -> None:
    with (
        service.on_own_database(tmp_path / "log", max_watches_per_caller="0") as running,
        watchers.grpcio(running.base_url) as watch,
        ExitStack() as stack,
    ):
        streams = [stack.enter_context(watch(WANTED)) for _ in range(20)]
        for stream in streams:
            next(stream)
