"""Tokens in a running service: replaced keys, the end of streams, and leaks."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from server.gen.google.rpc.error_details_pb import ErrorInfo, RetryInfo
from server.gen.listings.v1.orders_pb import (
    GetOrderRequest,
    ListOrdersRequest,
    UpdateOrderPaymentRequest,
    WatchOrderPaymentsRequest,
)
from tests.support import service
from tests.support.callers import CALLERS, Failure, json_client, path
from tests.support.key_server import serving
from tests.support.orders import Orders
from tests.support.reading import refused
from tests.support.service import Service
from tests.support.tokens import READ, WRITE, Issuer, bearer, ec_key, ed_key
from tests.support.waiting import eventually
from tests.support.watchers import WATCHERS

EVERYTHING = ListOrdersRequest()


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    """An issuer for one test."""
    return Issuer(tmp_path / "jwks.json")


@pytest.fixture
def own(tmp_path: Path, issuer: Issuer) -> Iterator[Service]:
    """A service that accepts its tokens."""
    settings = {"public": "health", "jwt_leeway": "0"} | issuer.settings()
    with service.on_own_database(tmp_path / "log", **settings) as own:
        yield own
    assert "Traceback" not in own.log.read_text()


def listed(running: Service, token: str, protocol: str = "grpcio") -> str:
    """Return the code that a read gets."""
    with CALLERS[protocol](running.base_url, **bearer(token)) as call:
        try:
            call(EVERYTHING)
        except Failure as failure:
            return failure.code
    return "ok"


def reason(failure: Failure) -> str:
    (detail,) = (each for each in failure.details if isinstance(each, ErrorInfo))
    assert detail.domain == "listings.v1"
    return detail.reason


def test_reasons_of_rejected_tokens(own: Service, issuer: Issuer) -> None:
    for headers, expected in (
        ({}, "TOKEN_MISSING"),
        ({"authorization": "Basic eDp5"}, "TOKEN_INVALID"),
        ({"authorization": "Bearer"}, "TOKEN_INVALID"),
        (bearer(issuer.token(READ, key=ed_key())), "TOKEN_INVALID"),
        (bearer(issuer.token(READ, exp=int(time.time()) - 1)), "TOKEN_EXPIRED"),
    ):
        for connect in CALLERS.values():
            with connect(own.base_url, **headers) as call:
                failure = refused(call, EVERYTHING)
            assert (failure.code, reason(failure)) == ("unauthenticated", expected)


def test_a_missing_permission_is_named(own: Service, issuer: Issuer) -> None:
    with CALLERS["connect-binary"](own.base_url, **bearer(issuer.token(READ))) as call:
        request = UpdateOrderPaymentRequest(order_id=1, payment_status="paid")
        failure = refused(call, request)
    assert failure.code == "permission_denied"
    (detail,) = failure.details
    assert isinstance(detail, ErrorInfo)
    assert detail.reason == "PERMISSION_MISSING"
    assert detail.metadata == {"path": path(request), "permission": WRITE}


def test_the_challenge(own: Service, issuer: Issuer) -> None:
    """The header WWW-Authenticate (RFC 6750, section 3)."""
    with json_client(own.base_url) as client:

        def challenged(**headers: str) -> tuple[int, str]:
            response = client.post(path(EVERYTHING), content="{}", headers=headers)
            return response.status_code, response.headers["www-authenticate"]

        assert challenged() == (401, "Bearer")
        assert challenged(**bearer("x")) == (401, 'Bearer error="invalid_token"')
        assert challenged(**bearer(issuer.token(WRITE))) == (
            403,
            'Bearer error="insufficient_scope", scope="orders:read"',
        )


def test_two_authorization_headers_are_rejected(own: Service, issuer: Issuer) -> None:
    header = bearer(issuer.token(READ))["authorization"]
    with json_client(own.base_url) as client:
        twice = [("authorization", header)] * 2
        response = client.post(path(EVERYTHING), content="{}", headers=twice)
        assert response.status_code == 401
        for scheme in ("bearer", "BEARER"):  # RFC 9110, section 11.1
            once = {"authorization": header.replace("Bearer", scheme)}
            assert client.post(path(EVERYTHING), content="{}", headers=once).status_code == 200


def test_keys_are_replaced_without_a_restart(own: Service, issuer: Issuer) -> None:
    """The new key is published before it is used, and the old one removed after."""
    old, new = issuer.keys[0], ec_key("new")
    first = issuer.token(READ, key=old)
    assert listed(own, first) == "ok"
    issuer.publish(old, new)
    assert listed(own, issuer.token(READ, key=new)) == "ok"
    assert listed(own, first) == "ok"
    issuer.publish(new)
    eventually(lambda: listed(own, first) == "unauthenticated")
    assert listed(own, issuer.token(READ, key=new)) == "ok"


def test_keys_from_a_url_that_is_unreachable_at_first(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(issuer.key_set()) as keys:
        url, port = keys.url, keys.server_port
    settings = issuer.settings() | {"jwks": url}
    token = issuer.token(READ)
    with service.on_own_database(tmp_path / "log", **settings) as own:
        assert ready(own) == (503, "the keys of tokens cannot be fetched\n")
        with CALLERS["grpcio"](own.base_url, **bearer(token)) as call:
            failure = refused(call, EVERYTHING)
            assert failure.code == "unavailable"
            assert any(isinstance(each, RetryInfo) for each in failure.details)
        with serving(issuer.key_set(), port):
            eventually(lambda: ready(own) == (200, "ok\n"))
            assert listed(own, token) == "ok"
        assert listed(own, issuer.token(READ)) == "ok", "also when it is gone again"


def ready(running: Service) -> tuple[int, str]:
    response = httpx.get(f"{running.base_url}/readyz", trust_env=False)
    return response.status_code, response.text


@pytest.mark.parametrize("protocol", WATCHERS)
def test_a_stream_ends_with_its_token(own: Service, issuer: Issuer, protocol: str) -> None:
    end = int(time.time()) + 2
    token = issuer.token(READ, exp=end)
    with (
        WATCHERS[protocol](own.base_url, **bearer(token)) as watch,
        watch(WatchOrderPaymentsRequest(order_ids=[1])) as stream,
    ):
        next(stream)
        with pytest.raises(Failure) as caught:
            next(stream)
    assert (caught.value.code, reason(caught.value)) == ("unauthenticated", "TOKEN_EXPIRED")
    assert end <= time.time() < end + 2


def test_reflection_ends_with_its_token(own: Service, issuer: Issuer) -> None:
    method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    over = threading.Event()

    def questions() -> Iterator[bytes]:
        yield b"\x3a\x00"  # list_services
        over.wait(20)

    token = issuer.token("reflection", exp=int(time.time()) + 2)
    with grpc.insecure_channel(own.base_url.removeprefix("http://")) as channel:
        call = channel.stream_stream(method)(questions(), metadata=list(bearer(token).items()))
        next(call)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        over.set()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_unknown_keys_occupy_few_slots_while_a_fetch_is_slow(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that waits for keys occupies no place in the queue for the database."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(issuer.key_set()) as keys:
        settings = issuer.settings() | {"jwks": keys.url, "pool_size": "1", "queue_size": "1"}
        with service.on_own_database(tmp_path / "log", **settings) as own:
            keys.go_on.clear()
            own.process.send_signal(signal.SIGHUP)  # which asks for them
            eventually(lambda: keys.asked == 2)
            query = "connect=v1&encoding=json&message=%7B%7D"
            unknown_key = bearer(issuer.token(READ, key=ec_key("unknown")))
            with ThreadPoolExecutor(8) as pool, json_client(own.base_url) as client:
                waiting = [
                    pool.submit(
                        client.get, f"{path(EVERYTHING)}?{query}", headers=unknown_key, timeout=20
                    )
                    for _ in range(8)
                ]
                good = issuer.token(READ)
                for _ in range(20):
                    assert listed(own, good) == "ok"
                keys.go_on.set()
                assert {each.result().status_code for each in waiting} == {401}


class TestWhatIsPublic:
    def test_pages(self, own: Service, issuer: Issuer) -> None:
        with json_client(own.base_url) as client:
            assert client.get("/livez").status_code == 200
            assert client.get("/readyz").status_code == 200
            refusal = client.get("/metrics")
            assert refusal.status_code == 401
            assert "a token is needed" in refusal.text
            assert client.get("/metrics", headers=bearer("x")).status_code == 401
            assert client.get("/metrics", headers=bearer(issuer.token(READ))).status_code == 403
            shown = client.get("/metrics", headers=bearer(issuer.token("metrics")))
            assert "listings_rpcs_total" in shown.text

    def test_public_setting(self, tmp_path: Path, issuer: Issuer) -> None:
        check = "/grpc.health.v1.Health/Check"
        reflect = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        for public, open_to_all in (
            ("health", {check}),
            ("reflection, metrics", {reflect, "/metrics"}),
            ("none", set()),
        ):
            settings = issuer.settings() | {"public": public}
            with service.on_own_database(tmp_path / "log", **settings) as own:
                assert {each for each in (check, reflect, "/metrics") if is_open(own, each)} == (
                    open_to_all
                )


def is_open(running: Service, path: str) -> bool:
    if path == "/metrics":
        return httpx.get(running.base_url + path, trust_env=False).status_code == 200
    with grpc.insecure_channel(running.base_url.removeprefix("http://")) as channel:
        try:
            next(
                iter(channel.stream_stream(path)(iter([b"\x3a\x00" if "reflect" in path else b""])))
            )
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            return False
    return True


def test_tokens_do_not_leak(own: Service, issuer: Issuer) -> None:
    """Neither into the log, nor into metrics, nor into responses."""
    secrets = [
        issuer.token(READ),
        issuer.token(READ, aud="billing"),
        issuer.token("nothing"),
        issuer.token(READ, key=ec_key("unknown")),
        issuer.token(READ)[:-4] + "AAAA",
        "c2VjcmV0IHNlY3JldA.c2VjcmV0IHNlY3JldA.c2VjcmV0IHNlY3JldA",
        "secret-secret-secret-secret",
    ]
    shown = []
    for secret in secrets:
        for protocol in CALLERS:
            with CALLERS[protocol](own.base_url, **bearer(secret)) as call:
                try:
                    call(EVERYTHING)
                except Failure as failure:
                    shown.append(str(failure))
        with json_client(own.base_url) as client:
            for place in ("/", "/metrics", path(EVERYTHING)):
                response = client.get(place, headers=bearer(secret))
                shown.append(f"{response.headers} {response.text}")
            client.post(path(EVERYTHING), content="{}", headers={"x-forwarded-for": secret})
            if secret.startswith("eyJ"):  # where no token belongs
                client.post(f"/{secret}", content="{}", headers={"x-request-id": secret})
                client.get(path(EVERYTHING), params={"access_token": secret})
    with json_client(own.base_url) as client:
        shown.append(client.get("/metrics", headers=bearer(issuer.token("metrics"))).text)
    everything = "\n".join([*shown, own.log.read_text()])
    for secret in secrets:
        for part in re.split(r"\.", secret):
            assert part[:16] not in everything


def test_an_update_is_not_made_without_permission(own: Service, issuer: Issuer) -> None:
    orders = Orders(own.database_url)
    order_id = orders.add()
    before = orders.row(order_id)
    for protocol in CALLERS:
        for token in (issuer.token(READ), issuer.token(WRITE, key=ed_key())):
            with CALLERS[protocol](own.base_url, **bearer(token)) as call:
                refused(call, UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"))
    assert orders.row(order_id) == before
    with CALLERS["grpcio"](own.base_url, **bearer(issuer.token(WRITE))) as call:
        call(UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid"))
        assert refused(call, GetOrderRequest(order_id=order_id)).code == "permission_denied"
    assert orders.row(order_id)["payment_status"] == "paid"
