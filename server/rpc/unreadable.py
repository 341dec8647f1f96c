"""The error for a request that cannot be decoded."""

from collections.abc import Iterable
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf import Message


class UnreadableRequest(ConnectError):
    """INVALID_ARGUMENT. ``message`` may quote the request, ``logged`` does not.

    A request that was not decoded is not masked in the log, and a caller may have put an identifier
    of a payment into any of its fields.
    """

    def __init__(self, message: str, logged: str, details: Iterable[Message[Any]] = ()) -> None:
        super().__init__(Code.INVALID_ARGUMENT, message, details)
        self.logged = logged
