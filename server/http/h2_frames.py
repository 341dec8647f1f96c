"""Where the frames of an HTTP/2 connection begin and end (RFC 9113, section 4.1).

Works around zttp, which does not tell whether what it has received ends within a frame or a header
list.
"""

from __future__ import annotations

from typing import Final

_PREFACE: Final = 24  # bytes; section 3.4
_HEAD: Final = 9  # bytes: length in three, type, flags, stream in four
_END_HEADERS: Final = 0x4
_HEADERS, _SETTINGS, _CONTINUATION = 1, 4, 9


class FrameBoundaries:
    """Follows what a client sends, from its preface on.

    A unit is a frame, or the frames of a header list: HEADERS and CONTINUATION up to END_HEADERS.
    The first one is the preface and the SETTINGS that have to follow it.
    """

    __slots__ = ("_is_open", "_partial_head", "_skip", "_unit")

    def __init__(self) -> None:
        self._skip = _PREFACE  # bytes until the next frame begins
        self._partial_head = b""
        self._is_open = True  # the unit goes on after the frame
        self._unit = 0

    def receive(self, data: bytes) -> int | None:
        """Take what was received next. Return the number of the unit that is incomplete, if any."""
        if self._partial_head:
            data = self._partial_head + data
        at, end = self._skip, len(data)
        while at + _HEAD <= end:
            if not self._is_open:
                self._unit += 1
            kind = data[at + 3]
            if kind in (_HEADERS, _CONTINUATION):
                self._is_open = not data[at + 4] & _END_HEADERS
            elif kind == _SETTINGS:
                self._is_open = False
            at += _HEAD + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
        self._partial_head = data[at:]
        self._skip = max(at - end, 0)
        if at == end and not self._is_open:
            return None
        # A head that is not complete begins the next unit.
        return self._unit + (self._partial_head != b"" and not self._is_open)
