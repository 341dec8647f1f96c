"""Errors of values in JSON: each kind of field, with each value, in each position."""

import json
from typing import Any, Final

import pytest
from connectrpc.errors import ConnectError
from hypothesis import given
from hypothesis import strategies as st
from protobuf import DescMessage, Message

from server.gen.google.rpc.error_details_pb import BadRequest
from server.gen.listings.v1.orders_pb import FindOrderByPaymentRequest, UpdateOrderPaymentRequest
from server.observability.masking import MASKED_FIELDS
from server.rpc.json_codec import StrictJSONCodec
from server.rpc.unreadable import UnreadableRequest
from tests.support.sink import INTEGERS, KINDS, SINK, VALUES, takes

UPDATE: Final = UpdateOrderPaymentRequest.desc()

EXPECTED: Final = {
    "bool": ("expected true or false", {"BOOLEAN_EXPECTED"}),
    "string": ("expected ", {"STRING_EXPECTED", "UNICODE_EXPECTED"}),
    "bytes": ('expected base64 as in "aGVsbG8="', {"BASE64_EXPECTED"}),
    "double": ("expected a number as in 1.5", {"NUMBER_EXPECTED"}),
    "float": ("expected a number of 32 bits as in 1.5", {"NUMBER_EXPECTED"}),
    "state": ("expected one of STATE_UNSPECIFIED, STATE_PAID", {"ENUM_VALUE_EXPECTED"}),
    "timestamp": ('expected a time as in "2026-11-30T12:00:00Z"', {"TIMESTAMP_EXPECTED"}),
    "duration": ('expected seconds as in "3600s"', {"DURATION_EXPECTED"}),
    "struct": ("expected a google.protobuf.Struct in JSON", {"VALUE_EXPECTED"}),
} | dict.fromkeys(INTEGERS, ("expected an integer ", {"INTEGER_EXPECTED", "INTEGER_OUT_OF_RANGE"}))


def decoded(body: str) -> Any:
    return StrictJSONCodec().decode(body.encode(), SINK.type)


def failed(body: str, message: DescMessage = SINK) -> UnreadableRequest:
    """Return the error for a request that is not decoded."""
    with pytest.raises(UnreadableRequest) as caught:
        StrictJSONCodec().decode(body.encode(), message.type)
    assert caught.value.code.value == "invalid_argument"
    caught.value.message.encode()
    return caught.value


def violations(error: ConnectError) -> list[tuple[str, str, str]]:
    """Return the field, the description and the reason of each."""
    (detail,) = error.details
    found = detail.value()
    assert isinstance(found, BadRequest)
    return [(each.field, each.description, each.reason) for each in found.field_violations]


def positions(name: str, value: str) -> dict[str, tuple[str, str]]:
    """Return requests that have the value, with the paths to it in JSON and in the proto."""
    one, several = f"one{name.capitalize()}", f"all{name.capitalize()}"
    return {
        f'{{"{one}": {value}}}': (one, f"one_{name}"),
        f'{{"one_{name}": {value}}}': (f"one_{name}", f"one_{name}"),
        f'{{"{several}": [{value}]}}': (f"{several}[0]", f"all_{name}[0]"),
        f'{{"inner": {{"{one}": {value}}}}}': (f"inner.{one}", f"inner.one_{name}"),
        f'{{"inners": [{{}}, {{"{one}": {value}}}]}}': (
            f"inners[1].{one}",
            f"inners[1].one_{name}",
        ),
        f'{{"right": {{"{several}": [{value}]}}}}': (
            f"right.{several}[0]",
            f"right.all_{name}[0]",
        ),
    }


def shown(value: str) -> str:
    """Return how an error shows a value."""
    if value.startswith(("[", "{")):
        return "an array" if value[0] == "[" else "an object"
    if value.startswith('"'):
        return value if len(value) <= 42 else f'{value[:41]}…"'
    return value if len(value) <= 40 else f"{value[:40]}…"


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_with_each_value(name: str) -> None:
    """A value is decoded, or refused with its path, the right form, and what came."""
    expected, reasons = EXPECTED[name]
    for value in VALUES:
        for body, (spelled, path) in positions(name, value).items():
            if takes(name, value):
                decoded(body)
                continue
            error = failed(body)
            ((field, description, reason),) = violations(error)
            assert (field, reason in reasons) == (path, True), body
            form, _, got = description.partition("; got ")
            assert form.startswith(expected), body
            assert got == shown(value), body
            assert error.message.endswith(f": {spelled}: {description}"), body
            assert error.logged.endswith(f": {spelled}: {form}"), body


@pytest.mark.parametrize("name", INTEGERS)
def test_a_range_is_named(name: str) -> None:
    least, greatest = INTEGERS[name]
    for number in (least - 1, greatest + 1, 10**4_999):
        error = failed(f'{{"one_{name}": {"1" + "0" * 4_999 if number > 2**64 else number}}}')
        assert f"expected an integer from {least} to {greatest}; got " in error.message


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", ["5", '"x"', "true", "{}", "[null]", "[[]]"])
def test_a_repeated_field_takes_an_array_without_null(name: str, value: str) -> None:
    ((field, description, reason),) = violations(failed(f'{{"all_{name}": {value}}}'))
    if value.startswith("["):
        assert field == f"all_{name}[0]"
        assert description.startswith(EXPECTED[name][0])
        assert description.endswith("got null" if value == "[null]" else "got an array")
    else:
        assert (field, reason) == (f"all_{name}", "ARRAY_EXPECTED")
        example = description.removeprefix("expected an array as in ").partition("; got ")[0]
        assert getattr(decoded(f'{{"all_{name}": {example}}}'), f"all_{name}")


@pytest.mark.parametrize("name", KINDS)
def test_null_is_an_unset_field(name: str) -> None:
    body = f'{{"one_{name}": null, "all_{name}": null, "left": null, "right": {{}}}}'
    assert decoded(body) == decoded('{"right": {}}')


@pytest.mark.parametrize("value", ["5", '"x"', "true", "[]", "NaN"])
@pytest.mark.parametrize("name", ["inner", "right", "amounts"])
def test_a_message_and_a_map_are_objects(name: str, value: str) -> None:
    ((field, description, reason),) = violations(failed(f'{{"{name}": {value}}}'))
    assert (field, reason) == (name, "OBJECT_EXPECTED")
    assert description.startswith("expected an object")


def test_the_values_of_a_map() -> None:
    ((field, _, reason),) = violations(failed('{"amounts": {"a": "x"}}'))
    assert (field, reason) == ("amounts", "OBJECT_EXPECTED")
    assert decoded('{"amounts": {"a": "1"}}').amounts == {"a": 1}


class TestNames:
    def test_within_a_message(self) -> None:
        error = failed('{"inner": {"inners": [{"nope": 1}]}, "one_bool": true, "oneBool": true}')
        assert [(field, reason) for field, _, reason in violations(error)] == [
            ("inner.inners[0].nope", "UNKNOWN_FIELD"),
            ("one_bool", "DUPLICATE_FIELD"),
        ]
        error = failed('{"inner": {"left": "", "left": 1}}')
        assert violations(error) == [("left", "given twice", "DUPLICATE_FIELD")]

    @pytest.mark.parametrize("name", [r"\ud800", "x" * 60_000, "\U0001f600" * 9_000])
    @pytest.mark.parametrize("times", [1, 2])
    def test_a_hostile_name_is_shortened(self, name: str, times: int) -> None:
        error = failed("{" + ", ".join([f'"{name}": 1'] * times) + "}", UPDATE)
        ((field, _, _),) = violations(error)
        assert len(field) <= 100
        assert f": {field}: " in error.message

    @pytest.mark.parametrize("path", ["", "inner."])
    def test_two_members_of_a_oneof(self, path: str) -> None:
        members = '{"left": "a", "later": "2026-11-30T12:00:00Z"}'
        error = failed(f'{{"inner": {members}}}' if path else members)
        problem = "expected only one of left, right, later; got left and later"
        assert violations(error) == [(f"{path}choice", problem, "DUPLICATE_ONEOF")]


class TestIdentifiers:
    """Identifiers of payments are shown by their type alone, and no value is logged."""

    @given(
        st.sampled_from(MASKED_FIELDS),
        st.sampled_from([UpdateOrderPaymentRequest, FindOrderByPaymentRequest]),
        st.sampled_from([4242424242, 42424.25, "pi_4242\ud800"])
        | st.recursive(
            st.sampled_from(["pi_4242", 4242424242]),
            lambda inner: st.lists(inner, min_size=1) | st.dictionaries(st.just("pi_4242"), inner),
        ).filter(lambda value: not isinstance(value, str)),
    )
    def test_they_are_not_echoed(self, name: str, kind: type[Message[Any]], value: object) -> None:
        error = failed(json.dumps({name: value}), kind.desc())
        ((field, description, _),) = violations(error)
        assert field == name
        assert "4242" not in error.message + description + error.logged

    def test_in_another_field_the_value_is_shown_and_not_logged(self) -> None:
        error = failed('{"orderId": "pi_4242"}', UPDATE)
        assert 'got "pi_4242"' in error.message
        assert "pi_4242" not in error.logged

    def test_a_token_is_masked(self) -> None:
        token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"
        assert 'got "(token)"' in failed(f'{{"orderId": "{token}"}}', UPDATE).message


def test_as_many_faults_as_fit_into_trailers() -> None:
    error = failed('{"orderId": "x", "nope": 1, "paymentStatus": 5, "payment_status": 6}', UPDATE)
    reasons = [reason for _, _, reason in violations(error)]
    assert reasons == ["INTEGER_EXPECTED", "UNKNOWN_FIELD", "STRING_EXPECTED", "DUPLICATE_FIELD"]

    values = ", ".join(['"' + "\U0001f600" * 50 + '"'] * 1_000)
    error = failed(f'{{"all_int64": [{values}]}}')
    assert 2 < len(violations(error)) < 20
    size = sum(len(each.message_bytes) for each in error.details) + len(error.message.encode())
    assert size < 3_000
