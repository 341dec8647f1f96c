"""The binary codec for requests: connectrpc's, with errors that say what was expected."""

from typing import Any, Final, TypeVar

from protobuf import Message

from server.rpc.unreadable import UnreadableRequest

_UNREADABLE: Final = "cannot read the request as protobuf"
_AS_JSON: Final = "JSON has the content type application/json or application/grpc+json"

_M = TypeVar("_M", bound=Message[Any])


class BinaryCodec:
    """A ``connectrpc.codec.Codec`` for protobuf's binary format."""

    def name(self) -> str:
        """Return the suffix of the content type ``application/proto``."""
        return "proto"

    def encode(self, message: Message[Any]) -> bytes:
        """Return ``message`` in binary."""
        return message.to_binary()

    def decode(self, data: bytes | bytearray, message_class: type[_M]) -> _M:
        """Return the message in ``data``. Raises UnreadableRequest."""
        try:
            return message_class.from_binary(data)
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            text = f"{_UNREADABLE}: {_problem(data, error)}"
            expected = f"expected a {message_class.desc().type_name} in binary; {_AS_JSON}"
            raise UnreadableRequest(f"{text}; {expected}", text) from error


def _problem(data: bytes | bytearray, error: Exception) -> str:
    """Return what is wrong with ``data``, without a part of it."""
    if data.lstrip()[:1] == b"{":
        return "it looks like JSON"
    if isinstance(error, UnicodeDecodeError):
        return "a string in it is not UTF-8"
    return str(error)
