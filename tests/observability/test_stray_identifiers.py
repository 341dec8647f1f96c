"""Identifiers of payments where none belongs: in paths, names and headers that a caller chooses."""

import asyncio
import itertools
import random
import string
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from server.observability.masking import mask_entry, mask_look_alikes, mask_name
from tests.support import databases, exchange, service
from tests.support.collector import Collector
from tests.support.requests import UNARY, Header, Protocol, Request

SERVICE = "listings.v1.OrderService"
UPPER = string.ascii_uppercase + string.digits
ANY = string.ascii_letters + string.digits
SEEN = b"x-request-id", b"seen"
KEPT = (b"9469dc101e5ce44fd22aead0f778d714", b"0f6b2f0e-5b7c-4a55-9d2e-0a1b2c3d4e5f")
"""Request ids."""

_random = random.Random(21)


def drawn(alphabet: str, length: int) -> str:
    return "".join(_random.choices(alphabet, k=length))


# As each provider writes them: these are masked in any text.
IDENTIFIERS: dict[str, Callable[[], str]] = {
    "Stripe session": lambda: f"cs_test_{drawn(ANY, 58)}",
    "Stripe live session": lambda: f"cs_live_{drawn(ANY, 58)}",
    "long session": lambda: f"cs_test_{drawn(ANY, 240)}",
    "Stripe intent": lambda: f"pi_3N{drawn(ANY, 22)}",
    "Stripe charge": lambda: f"ch_3N{drawn(ANY, 22)}",
    "Stripe event": lambda: f"evt_1N{drawn(ANY, 22)}",
    "Stripe refund": lambda: f"re_3N{drawn(ANY, 22)}",
    "Stripe invoice": lambda: f"in_1N{drawn(ANY, 22)}",
    "Mollie payment": lambda: f"tr_{drawn(ANY, 9)}7",  # a few have small letters alone
    "short": lambda: f"pi_{drawn(string.ascii_lowercase, 6)}{drawn(string.digits, 1)}",
    "PayPal capture": lambda: f"{drawn(string.digits, 1)}{drawn(UPPER, 15)}K",
    "Adyen reference": lambda: f"8{drawn(string.digits, 15)}",
    "AllSecure transaction": lambda: f"{drawn('0123456789abcdef', 19)}a",
}
# Others are what request ids are like, and masked in names alone.
IN_NAMES = IDENTIFIERS | {
    "UUID": lambda: str(uuid.UUID(int=_random.getrandbits(128))),
    "hexadecimal": lambda: f"{_random.getrandbits(124):031x}7",
    "prefix without digits": lambda: f"pi_{drawn(string.ascii_lowercase, 6)}",
    "short reference": lambda: f"ref{drawn(string.digits, 5)}",
}


def posts(protocol: Protocol, path: str, *headers: Header) -> Request:
    body = b"{}" if protocol.is_json else b""
    return protocol.request(path, body, *headers)


def in_names(protocol: Protocol, text: str) -> Iterator[Request]:
    """Yield requests with ``text`` as or in a name."""
    yield posts(protocol, f"{SERVICE}/{text}", SEEN)
    yield posts(protocol, f"{SERVICE}/GetOrder/{text}", SEEN)
    yield posts(protocol, f"{text}/GetOrder", SEEN)
    yield posts(protocol, f"orders/{text}/payment", SEEN)
    if protocol.is_json:
        yield protocol.request(f"{SERVICE}/GetOrder", b'{"%s": 1}' % text.encode(), SEEN)
        twice = b'{"%s": 1, "%s": 2}' % (text.encode(), text.encode())
        yield protocol.request(f"{SERVICE}/GetOrder", twice, SEEN)
    if not protocol.is_get:
        for content_type in (f"application/{text}", f"{protocol.content_type.decode()}+{text}"):
            other = replace(protocol, content_type=content_type.encode())
            yield posts(other, f"{SERVICE}/GetOrder", SEEN)
    yield posts(protocol, f"{SERVICE}/GetOrder", SEEN)._replace(verb=text.upper().encode())


def in_texts(protocol: Protocol, text: str) -> Iterator[Request]:
    """Yield requests with ``text`` as or in a text that is no identifier of a payment."""
    for path in (f"{SERVICE}/GetOrder", f"{SERVICE}/Nothing", "nothing"):
        yield posts(protocol, path, (b"x-request-id", text.encode()))
        yield posts(protocol, path, (b"x-request-id", f"job-7:{text}/2".encode()))
    if protocol.is_json:
        for name in ("paymentStatus", "paymentProvider", "overrideReason", "etag"):
            body = b'{"orderId": 1, "%s": "%s"}' % (name.encode(), text.encode())
            yield protocol.request(f"{SERVICE}/UpdateOrderPayment", body)
        yield protocol.request(f"{SERVICE}/ListOrders", b'{"pageToken": "%s"}' % text.encode())


def test_no_identifier_is_told(collector: Collector, tmp_path: Path) -> None:
    """In the log, metrics or traces. Each request has one of its own, of each kind in turn."""
    sent, requests = [], []
    for protocol in UNARY:
        for places, kinds in ((in_names, IN_NAMES), (in_texts, IDENTIFIERS)):
            makers = itertools.cycle(kinds.values())
            for place in range(len(list(places(protocol, "")))):
                sent.append(next(makers)())
                requests.append(list(places(protocol, sent[-1]))[place])
        requests += [
            posts(protocol, f"{SERVICE}/GetOrder", (b"x-request-id", each)) for each in KEPT
        ]
    with databases.clone() as url, service.running(url, tmp_path / "log") as running:
        codes = asyncio.run(exchange.send(running, requests))
        for make in IDENTIFIERS.values():
            sent.append(make())
            httpx.get(f"{running.base_url}/", headers={"host": f"{sent[-1]}.example"})
            preflight = {
                "origin": f"https://{sent[-1]}.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": sent[-1],
            }
            httpx.options(f"{running.base_url}/{SERVICE}/GetOrder", headers=preflight)
        metrics = httpx.get(f"{running.base_url}/metrics").text
        assert running.stop() == 0
    assert {exchange.WAITING, "internal", "unknown"}.isdisjoint(codes)
    log = running.log.read_text()
    for request_id in KEPT:
        assert len(running.logged(request_id=request_id.decode())) == len(UNARY)
    told = "\n".join([log, metrics, *(body.decode("latin-1") for _, body in collector.bodies)])
    assert [each for each in sent if each in told or each.upper() in told] == []


@pytest.mark.parametrize("make", IDENTIFIERS.values(), ids=IDENTIFIERS)
def test_identifiers_of_each_kind(make: Callable[[], str]) -> None:
    for text in (make() for _ in range(200)):
        for quoted in (text, f"'{text}'", f"job-7:{text}/2", f"({text})", f"id={text};"):
            assert text not in mask_look_alikes(quoted)


@pytest.mark.parametrize("make", IN_NAMES.values(), ids=IN_NAMES)
def test_names_of_each_kind(make: Callable[[], str]) -> None:
    for text in (make() for _ in range(200)):
        for name in (text, f"{SERVICE}/{text}", f"application/json+{text}", text.upper()):
            assert text not in mask_name(name) and text.upper() not in mask_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "9469dc101e5ce44fd22aead0f778d714",
        "0f6b2f0e-5b7c-4a55-9d2e-0a1b2c3d4e5f",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "Root=1-67891233-abcdef012345678912345678",
        "web-1/gvNk3zQx-000123",
        "order 12 is PAID; set payment_event_time or payment_transaction_id",
        "relation idx_orders_payment_status_created does not exist",
        "index idx_tx_created or uq_ord_items_v2, table ord_items, constraint chk_evt_type",
        "postgresql://ch_app@db/ord_prod and py_test_shop",
        'File "/srv/ch_shop/app.py", line 3, in test_pi_rounding',
        "pi_3…cDEF",
    ],
)
def test_what_is_no_identifier_stays(text: str) -> None:
    assert mask_look_alikes(text) == text


def test_the_database_and_paths_of_code_stay() -> None:
    entry = {"event": "using PostgreSQL", "database": "ord_2026 at pm_7x, as tx_1app"}
    assert mask_entry(None, "info", dict(entry)) == entry
    root = str(Path(__file__).parents[2])
    traceback = f'Traceback:\n  File "{root}/server/app.py", line 3, in up\nE: "{root}/pi_3Nab"'
    masked = mask_entry(None, "info", {"event": "rpc", "exception": traceback})["exception"]
    assert masked == traceback.replace("pi_3Nab", "…")


def test_a_cut_identifier_is_masked() -> None:
    for make in IDENTIFIERS.values():
        for before in range(250, 310, 3):
            dots, identifier = "." * before, make()
            texts = f"{dots}{identifier}{dots * 20}", f"{dots * 20}{identifier}{dots}"
            told = [mask_name(f"{dots} {identifier}" * 3)]
            for name, text in itertools.product(("error", "exception"), texts):
                told.append(mask_entry(None, "info", {"event": "rpc", name: text})[name])
            parts = {identifier[at : at + 9] for at in range(len(identifier) - 8)}
            assert not [each for each in told if any(part in each for part in parts)]


@pytest.mark.parametrize(
    "name",
    [
        "listings.v1.OrderService/UpdatePayment",
        "grpc.reflection.v1alpha.ServerReflection/Info",
        "application/x-www-form-urlencoded; charset=utf-8",
        "payment_session_ids",
        "orderIds[12]",
    ],
)
def test_a_name_that_is_no_identifier_stays(name: str) -> None:
    assert mask_name(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("listings.v1.OrderService/pi_3NabcDEF4567890", "listings.v1.OrderService/pi_3…7890"),
        ("orders/pi_3N", "orders/…"),
        ("orders/12345678/payment", "orders/…/payment"),
        (
            "multipart/form-data; boundary=----a7MA4YWxkTrZu0gW",
            "multipart/form-data; boundary=----…u0gW",
        ),
    ],
)
def test_what_is_shown_of_a_name(name: str, shown: str) -> None:
    assert mask_name(name) == shown
