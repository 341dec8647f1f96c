"""The tables of the documentation agree with the code."""

import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import grpc
import httpx
from connectrpc.code import Code
from prometheus_client.parser import text_string_to_metric_families

from persistence.decision import Attempt, Reason, refusal
from persistence.payment_states import Meaning, PaymentState
from server.gen.listings.v1.orders_connect import OrderService
from server.rpc.retries import RETRIES, Retry
from server.settings import Settings, variable
from tests.support.markdown import ROOT, blocks, code, page, table
from tests.support.service import Service

API: Final = page("api.md")

REASON: Final = re.compile(r"[A-Z]+(?:_[A-Z]+)+|OVERLOADED")


def test_settings() -> None:
    rows = table(page("configuration.md"), "Variable", "Default")
    documented = {code(row[0])[0]: "".join(code(row[1])) for row in rows}
    fields = Settings.model_fields
    assert documented == {variable(name): shown(field.default) for name, field in fields.items()}


def shown(default: object) -> str:
    match default:
        case None:
            return ""
        case bool():
            return "on" if default else "off"
        case float():
            return f"{default:g}"
        case tuple():
            return ",".join(default)
        case _:
            return str(default)


def permissions() -> Mapping[str, str]:
    return tomllib.loads((ROOT / "proto" / "permissions.toml").read_text())


def test_permissions() -> None:
    documented = {
        code(row[0])[0]: code(row[1])
        for row in table(page("security.md"), "Permission", "Methods and pages")
    }
    table_of_code: dict[str, list[str]] = {}
    for path, permission in permissions().items():
        service, _, method = path.strip("/").rpartition("/")
        is_own = service == OrderService.desc().type_name
        name = method if is_own else service or path
        names = table_of_code.setdefault(permission, [])
        # A field that needs a further permission follows its method and "#".
        names.extend(each for each in name.split("#") if each not in names)
    assert documented == table_of_code


def test_methods() -> None:
    rows = table(API, "Method", "Permission")
    documented = {code(row[0])[0]: code(row[1])[0] for row in rows}
    desc = OrderService.desc()
    assert documented == {
        method.name: permissions()[f"/{desc.type_name}/{method.name}"] for method in desc.methods
    }


def test_status_transitions() -> None:
    """Each state is in one row; "every other state" stands for all that are not named after it."""
    every = {state.name for state in PaymentState}
    documented = {}
    for row in table(page("payments.md"), "From", "To"):
        named = set(code(row[1]))
        for state in code(row[0]):
            assert state not in documented
            documented[state] = every - named - {state} if "every other state" in row[1] else named
    assert documented == {state.name: followers(state) for state in PaymentState}


def followers(now: PaymentState) -> set[str]:
    """Return the other states that the order's own attempt or another may move to."""
    return {
        new.name
        for new in set(PaymentState) - {now}
        if any(
            refusal(now, Meaning(new), attempt, is_late=False) is None
            for attempt in (Attempt.OWN, Attempt.OTHER)
        )
    }


def test_metrics(running: Service) -> None:
    rows = table(page("operations.md"), "Metric", "Type")
    documented = {(code(row[0])[0], row[1]) for row in rows}
    documented.remove(("process_…", ""))
    exposed = httpx.get(f"{running.base_url}/metrics", trust_env=False).text
    families = list(text_string_to_metric_families(exposed))
    assert any(each.name.startswith("process_") for each in families)
    assert documented == {
        (each.name + ("_total" if each.type == "counter" else ""), each.type)
        for each in families
        if not each.name.startswith("process_")
    }


def test_error_codes() -> None:
    rows = [row for row in table(API, "Code", "gRPC", "HTTP") if row[0]]
    numbers: dict[str, Any] = {each.name.lower(): each.value[0] for each in grpc.StatusCode}
    for row in rows:
        name = code(row[0])[0]
        assert Code(name), name
        assert int(row[1]) == numbers[name]


def test_retries() -> None:
    documented = {
        code(row[0])[0]: (code(row[1])[0], row[2], row[3])
        for row in table(API, "Reason", "Code", "Send again")
    }
    assert documented == {
        reason: (retry.code.value, again(retry.delay), again(without_key(retry)))
        for reason, retry in RETRIES.items()
    }


def without_key(retry: Retry) -> timedelta | None:
    return None if retry.needs_key else retry.delay


def again(delay: timedelta | None) -> str:
    return "never" if delay is None else f"after {delay.total_seconds():g} s"


def test_service_config() -> None:
    """The page shows the file that clients copy."""
    (shown,) = (each.text for each in blocks(page("clients.md")) if each.language == "json")
    file = ROOT / "proto" / "listings" / "v1" / "orders_grpc_service_config.json"
    assert shown == file.read_text()


def test_error_reasons() -> None:
    documented = set()
    for row in table(API, "Code", "gRPC", "HTTP"):
        documented |= {each for each in code(row[4]) if REASON.fullmatch(each)}
    source = "".join(
        each.read_text()
        for package in ("server", "persistence")
        for each in (ROOT / package).rglob("*.py")
    )
    unknown = [reason for reason in documented if f'"{reason}"' not in source]
    assert not unknown
    contract = (ROOT / "proto" / "listings" / "v1" / "orders.proto").read_text()
    text = re.sub(r"\s*//\s*", " ", contract)
    named = re.findall(r"reason ((?:[A-Z]+_[A-Z_]+(?:, | or )?)+)", text)
    assert {each for names in named for each in REASON.findall(names)} <= documented
    assert {reason.value for reason in Reason} <= documented
