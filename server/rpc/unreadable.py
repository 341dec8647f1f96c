"""The error for a request that cannot be decoded."""

from collections.abc import Iterable
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf import Message


class UnreadableRequest(ConnectError):
    """INVALID_ARGUMENT, unless a specification has another code: the caller's fault in any case.

    ``message`` may quote the request, ``logged`` does not.

    A request that was not decoded is not masked in the log, and a caller may have put an identifier
    of a payment into any of its fields.
    """

    def __init__(
        self,
        message: str,
        logged: str,
        details: Iterable[Message[Any]] = (),
        code: Code = Code.INVALID_ARGUMENT,
    ) -> None:
        super().__init__(code, message, details)
        self.logged = logged
