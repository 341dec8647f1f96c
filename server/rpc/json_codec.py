"""A strict JSON codec for requests.

connectrpc's own codec takes the last of two equal names, and of two members of a oneof, drops
unknown names, reads the order id "1_0" as 10, and crashes the process with a stack overflow on some
14,000 nested brackets. Here each of these is an error: a misread number is another customer's
order, and a misspelt field a payment that is acknowledged and not stored.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from connectrpc.codec import proto_json_codec
from protobuf import DescMessage, Message, Registry, message_from_json_value

from server.gen.google.rpc.error_details_pb import BadRequest
from server.rpc.json_fields import Fault, faults, repeated
from server.rpc.json_forms import Constant, Number, example
from server.rpc.unreadable import UnreadableRequest

_MAX_DEPTH: Final = 100  # the recursion limit of protobuf's C++ and Java implementations

# gRPC clients accept a few KiB of trailers, which hold each of these twice.
_MAX_ERROR_CHARACTERS: Final = 600
_MAX_FAULTS_BYTES: Final = 1_000

_UNREADABLE: Final = "cannot read the request as JSON"

# A string is one token, so that brackets within it do not count. The possessive *+ and the optional
# closing quote keep the scan linear for any input, also for a string without an end.
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)

_M = TypeVar("_M", bound=Message[Any])


class StrictJSONCodec:
    """A ``connectrpc.codec.Codec`` for protobuf's JSON that refuses ambiguous input.

    https://protobuf.dev/programming-guides/json
    """

    def __init__(self, registry: Registry | None = None) -> None:
        """``registry`` has the types that a ``google.protobuf.Any`` in a response may hold."""
        self._encoder = proto_json_codec(registry)

    def name(self) -> str:
        """Return the suffix of the content type ``application/json``."""
        return "json"

    def encode(self, message: Message[Any]) -> bytes:
        """Return ``message`` as JSON."""
        return self._encoder.encode(message)

    def decode(self, data: bytes | bytearray, message_class: type[_M]) -> _M:
        """Return the message in ``data``.

        Raises UnreadableRequest: where fields are at fault, with a ``google.rpc.BadRequest`` that
        names each of them, the form that was expected and what came.
        """
        message = message_class.desc()
        value = _parsed(data, message)
        found = list(faults(message, value))
        if found:
            raise _refusal(found)
        try:
            return message_from_json_value(message_class, value)
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            # Its text may quote an identifier.
            raise UnreadableRequest(_UNREADABLE, _UNREADABLE) from error


class _Repeated(ValueError):
    """A name is given twice in one object."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def _parsed(data: bytes | bytearray, message: DescMessage) -> dict[str, Any]:
    """Return the JSON object in ``data``. Raises UnreadableRequest."""
    try:
        _check_depth(data)
        text = data.decode()
        value = _loaded(text)
    except _Repeated as error:
        raise _refusal([repeated(message, error.name)]) from None
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8: byte {error.start + 1} is 0x{data[error.start]:02x}"
        raise _no_json(problem, message) from error
    except json.JSONDecodeError as error:
        raise _no_json(_syntax(error), message) from error
    except ValueError as error:
        raise _no_json(str(error), message) from error
    if not isinstance(value, dict):
        raise _no_json("it is not an object", message)
    return value


def _loaded(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (json.JSONDecodeError, _Repeated):
        raise
    except ValueError:  # an integer of more than 4,300 digits
        return _LONG_DECODER.decode(text)


def _check_depth(data: bytes | bytearray) -> None:
    if data.count(b"[") + data.count(b"{") <= _MAX_DEPTH:
        return
    depth = 0
    for token in _TOKENS.finditer(data):
        if token[0] in (b"[", b"{"):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        elif token[0] in (b"]", b"}"):
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise _Repeated(name)
            seen.add(name)
    return unique


# Made once: json.loads makes one for each call with hooks, which takes longer than decoding.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=Constant, parse_float=Number
)
_LONG_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=Constant, parse_float=Number, parse_int=Number
)


def _syntax(error: json.JSONDecodeError) -> str:
    """Return what is wrong, and where, without a part of the request."""
    if not error.doc.strip():
        return "it is empty"
    if error.doc.startswith("\ufeff"):
        return "it begins with a byte order mark"
    problem = error.msg.partition(":")[0].removesuffix(" at").lower()
    return f"{problem} at line {error.lineno}, column {error.colno}"


def _no_json(problem: str, message: DescMessage) -> UnreadableRequest:
    text = f"{_UNREADABLE}: {problem}"
    return UnreadableRequest(f"{text}; a request looks like {example(message)}", text)


def _refusal(found: Sequence[Fault]) -> UnreadableRequest:
    """Return the error for these faults: the first, and as many others as fit into a response."""
    fit: list[Fault] = []
    size = 0
    for fault in found:
        size += len(f"{fault.spelled}{fault.description}".encode())
        if fit and size > _MAX_FAULTS_BYTES:
            break
        fit.append(fault)
    text = "; ".join(f"{each.spelled}: {each.description}" for each in fit)
    logged = "; ".join(each.logged for each in fit)
    violations = [
        BadRequest.FieldViolation(
            field=each.field, description=each.description, reason=each.reason
        )
        for each in fit
    ]
    return UnreadableRequest(
        f"{_UNREADABLE}: {text}"[:_MAX_ERROR_CHARACTERS],
        f"{_UNREADABLE}: {logged}",
        [BadRequest(field_violations=violations)],
    )
