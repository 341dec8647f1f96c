"""Pagination of lists by page size and page token: https://google.aip.dev/158.

A page token holds the key of the last entry of a page, so that the next page is found through an
index, and a hash of the list's filters, so that a token is refused where the filters differ. The
time in the key is exact, also where a response shows the nearest one that it can.
"""

import base64
import binascii
import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from connectrpc.errors import ConnectError
from protobuf import Message

from persistence.models import HistoryKey, OrderKey
from persistence.timestamps import SINCE_1970, microseconds_of, time_at
from server.rpc.errors import invalid_field

DEFAULT_SIZE: Final = 50
MAX_SIZE: Final = 1_000


_Entry = TypeVar("_Entry")
_Key = TypeVar("_Key", OrderKey, HistoryKey)


class PageRequest(Generic[_Key]):
    """The page that a request asks for, by its fields ``page_size`` and ``page_token``."""

    def __init__(self, request: Message[Any], key: type[_Key], *, sorted_by: str = "") -> None:
        """``key`` is the place of an entry in the list: a time, and one id or more.

        ``sorted_by`` names what the list is sorted by, where an earlier version differed: a token
        of that version would begin at another place. Raises ConnectError, INVALID_ARGUMENT, for a
        token that is not one of this list.
        """
        size: int = getattr(request, "page_size")  # noqa: B009 - no field of Message
        self._key: type[_Key] = key
        self._size = min(size or DEFAULT_SIZE, MAX_SIZE)
        self._filters = _hash_of_filters(request, sorted_by)
        token: str = getattr(request, "page_token")  # noqa: B009
        self.after: _Key | None = self._parse(token) if token else None
        """The key of the last entry of the page before, None for the first page."""

    @property
    def limit(self) -> int:
        """How many entries to read: one more than the page has, to know whether a page follows."""
        return self._size + 1

    def split(
        self, entries: Sequence[_Entry], key: Callable[[_Entry], _Key]
    ) -> tuple[Sequence[_Entry], str]:
        """Return the entries of the page, and the token of the next one, "" if there is none.

        ``entries`` are ``limit``, or all that follow; ``key`` returns what they are ordered by.
        """
        page = entries[: self._size]
        if len(page) == len(entries):
            return page, ""
        time, *ids = key(page[-1])
        numbers = _int64(microseconds_of(time) + SINCE_1970), *ids
        token = struct.pack(_token_format(len(numbers)), self._filters, *numbers)
        return page, base64.urlsafe_b64encode(token).decode()

    def _parse(self, token: str) -> _Key:
        try:
            content = base64.b64decode(token, b"-_", validate=True)
            filters, *numbers = struct.unpack(_token_format(len(content) // 8 - 1), content)
            microseconds, *ids = numbers
        except (binascii.Error, struct.error, ValueError) as error:
            raise _invalid_token("is not the next_page_token of a page") from error
        if filters != self._filters:
            raise _invalid_token("is of a list with other filters; begin again without it")
        if len(numbers) != len(self._key._fields):
            raise _invalid_token("is not the next_page_token of a page")
        key: _Key = self._key._make((time_at(_int64(microseconds - SINCE_1970)), *ids))
        return key


def _int64(number: int) -> int:
    """Return what 64 bits hold of ``number``.

    Since 1970, PostgreSQL's last times have no number in 64 bits, which count from 2000. But none
    of the others has what these hold.
    """
    return (number + 2**63) % 2**64 - 2**63


def _token_format(numbers: int) -> str:
    """Return the format of a page token: a hash of the filters, microseconds since 1970, ids."""
    return f">8s{numbers}q"


def _hash_of_filters(request: Message[Any], sorted_by: str) -> bytes:
    """Return a hash of all fields but those of the page.

    It is the same in every process and every version that knows the fields, whatever the protocol,
    and the order of the values of a repeated field: each value is an alternative.
    """
    filters = type(request).from_binary(request.to_binary())
    for name in ("page_size", "page_token"):
        filters.clear_field(name)
    for field in type(request).desc().fields:
        values = getattr(filters, field.local_name)
        if isinstance(values, list):
            values.sort()
    name = type(request).desc().type_name + sorted_by
    return hashlib.sha256(name.encode() + b"\0" + filters.to_binary()).digest()[:8]


def _invalid_token(description: str) -> ConnectError:
    return invalid_field("page_token", description, "PAGE_TOKEN_INVALID")
